-- gpm_spec.lua: the memory against exact pseudo-inverses, and what it can hold.
local weft = require "weft"
local compare = require "tests.models.compare"
local gpm = require "weft.models.gpm"

local golden = compare.golden "gpm.safetensors"

local function exact()
  local m = gpm({ slots = 6, width = 10, steps = 40 }):to "float64"
  m:load_state_dict { memory_mean = golden.M0, logvar_w = golden.logvar_w }
  return m
end

describe("gpm", function()
  it("iterates to the pseudo-inverse as the golden", function()
    for _, n in ipairs { 1, 3, 7, 10, 15, 30 } do
      compare.close(gpm.pseudo_inverse(golden.M0, n), golden["newton." .. n], 1e-12, "step " .. n)
    end
    compare.close(gpm.pseudo_inverse(golden.M0, 30), golden.pinv_M0, 1e-9)
  end)

  it("writes and reads as the golden", function()
    local m = exact()
    local posterior = m:write(golden.Z)
    compare.close(posterior, golden.M, 1e-7, "posterior")
    local z, mean = m:read(golden.Z, posterior)
    compare.close(z, golden.z_read, 1e-7, "read")
    compare.close(mean, golden.wbar, 1e-7, "weights")
    compare.close(m:kl(mean), golden.kl, 1e-7, "kl")
  end)

  it("gives back what it holds, up to one code a slot", function()
    local m = gpm({ slots = 8, width = 24 }):eval()
    local function error_of(count)
      local Z = weft.randn { 1, count, 24 }
      return (compare.error((m:read(Z, m:write(Z))), Z))
    end
    weft.manual_seed(1)
    assert.is_true(error_of(1) < 1e-5)
    assert.is_true(error_of(4) < 1e-3)
    assert.is_true(error_of(16) > 0.1)
    assert.is_true(error_of(64) > error_of(4))
  end)

  it("recovers little in few steps", function()
    local a = weft.eye(4) * weft.tensor { 1, 0.1, 0.1, 0.1 }
    assert.is_true(compare.error(weft.matmul(gpm.pseudo_inverse(a, 2), a), weft.eye(4)) > 0.5)
    assert.is_true(compare.error(weft.matmul(gpm.pseudo_inverse(a, 15), a), weft.eye(4)) < 1e-4)
  end)

  it("keeps samples apart in evaluation, and joins episodes in training", function()
    local m = gpm { slots = 4, width = 12, deterministic = true }
    local V = weft.randn { 6, 5, 12 }
    local other = V:clone()
    other[1]:mul_(-3)
    m:eval()
    local a, b = m(V), m(other)
    for i = 2, 6 do assert.is_true(compare.same(a[i], b[i])) end
    m:train()
    local c, d = m(V), m(other)
    -- samples 1..4 share a memory, 5 and 6 another
    assert.is_false(compare.same(c[2], d[2]))
    assert.is_true(compare.same(c:narrow(1, 5, 2), d:narrow(1, 5, 2)))
  end)

  it("splits a batch into episodes and averages the divergence over samples", function()
    local m = gpm { slots = 4, width = 12, deterministic = true }
    local codes = weft.randn { 6, 12 }
    local z, kl = m(codes)
    local first, kl_first = m(codes:narrow(1, 1, 4))
    local rest, kl_rest = m(codes:narrow(1, 5, 2))
    compare.close(z, weft.cat({ first, rest }, 1), 1e-6)
    compare.close(kl, (kl_first * 4 + kl_rest * 2) / 6, 1e-6)
  end)

  it("draws read weights in training alone", function()
    local m = gpm { slots = 4, width = 12 }
    local codes = weft.randn { 4, 12 }
    assert.is_false(compare.same((m(codes)), (m(codes))))
    m:eval()
    assert.is_true(compare.same((m(codes)), (m(codes))))
  end)

  it("changes nothing it holds", function()
    local m = gpm { slots = 4, width = 12 }
    local before = m.memory_mean:clone()
    m(weft.randn { 9, 12 })
    assert.is_true(compare.same(before, m.memory_mean))
    local n = 0
    for _ in m:named_buffers() do n = n + 1 end
    assert.equal(0, n)
  end)

  it("has finite gradients, also for a code of zeros", function()
    local m = gpm { slots = 4, width = 12 }
    local codes = weft.randn { 4, 12 }
    codes[2]:fill_(0)
    codes:requires_grad_()
    local z, kl = m(codes)
    local loss = (z * z):sum() + kl
    loss:backward()
    assert.is_true(compare.finite(codes.grad))
    for _, t in m:named_parameters() do assert.is_true(compare.finite(t.grad)) end
    m:eval()
    assert.is_true(compare.finite((m(codes))))
  end)

  it("has right gradients where the iteration converged", function()
    weft.manual_seed(2)
    local m = gpm({ slots = 3, width = 4, steps = 18, identity = false }):to "float64"
    local Z = weft.randn { 1, 2, 4, dtype = "float64", requires_grad = true }
    assert.is_true(weft.gradcheck(function(x)
      local z, mean = m:read(x, m:write(x))
      return z, m:kl(mean)
    end, { Z, m.memory_mean, m.logvar_w }))
  end)
end)
