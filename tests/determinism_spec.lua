-- determinism_spec.lua: the same bits with any number of threads, from single operators to a whole
-- training run; and the same numbers, to rounding, on each path of the CPU.
local ffi = require "ffi"
local weft = require "weft"
local command = require "tests.support.command"

-- All bytes of the tensors in a list.
local function bits(list)
  local out = {}
  for i, t in ipairs(list) do
    t = t:detach():contiguous()
    out[i] = ffi.string(t.p.v.data, t:numel() * (t.dtype == "float32" and 4 or 8))
  end
  return table.concat(out)
end

local function randn(name, shape, dtype)
  shape.rng, shape.dtype = weft.random.stream("determinism " .. name, 1), dtype
  return weft.randn(shape)
end

-- Output and all gradients of fn at leaves.
local function everything(fn, leaves)
  local out = {}
  for _, t in ipairs(leaves) do t:requires_grad_():zero_grad() end
  local y = fn(unpack(leaves))
  y:backward { gradient = randn("weights", y.shape, y.dtype) }
  out[1] = y
  for _, t in ipairs(leaves) do out[#out + 1] = t.grad end
  return out
end

local rng = { key = 77ULL, counter = 3ULL }
local sdpa = weft.scaled_dot_product_attention

-- name -> function of a dtype that computes tensors; sizes are cut into several pieces each
local work = {
  matmul = function(d)
    return everything(weft.matmul, { randn("a", { 3, 130, 257 }, d), randn("b", { 257, 300 }, d) })
  end,
  ["matmul of large squares"] = function(d)
    return everything(weft.matmul, { randn("a", { 331, 307 }, d), randn("b", { 307, 313 }, d) })
  end,
  linear = function(d)
    return everything(weft.linear, { randn("x", { 9, 101, 96 }, d), randn("w", { 300, 96 }, d), randn("bias", { 300 }, d) })
  end,
  lora_linear = function(d)
    return everything(function(x, w, bias, a, b) return weft.lora_linear(x, w, bias, a, b, 2, 0.1, rng) end,
      { randn("x", { 9, 101, 96 }, d), randn("w", { 300, 96 }, d), randn("bias", { 300 }, d), randn("a", { 8, 96 }, d),
        randn("b", { 300, 8 }, d) })
  end,
  attention = function(d)
    return everything(function(q, k, v) return sdpa(q, k, v, nil, true, 0, 0.1, rng) end,
      { randn("q", { 2, 3, 201, 32 }, d), randn("k", { 2, 3, 201, 32 }, d), randn("v", { 2, 3, 201, 32 }, d) })
  end,
  ["attention with a mask"] = function(d)
    local mask = randn("mask", { 2, 1, 1, 150 }, d):gt(-0.5)
    return everything(function(q, k, v) return sdpa(q, k, v, mask) end,
      { randn("q", { 2, 3, 77, 32 }, d), randn("k", { 2, 3, 150, 32 }, d), randn("v", { 2, 3, 150, 32 }, d) })
  end,
  layer_norm = function(d)
    return everything(weft.layer_norm, { randn("x", { 3000, 97 }, d), randn("w", { 97 }, d), randn("bias", { 97 }, d) })
  end,
  ["sums over everything, rows and columns"] = function(d)
    local x = randn("x", { 700, 911 }, d)
    return { x:sum(), x:sum(1), x:sum(2), x:mean(), x:var(1), x:norm(), x:logsumexp(1), x:softmax(1), x:cumsum(2) }
  end,
  cross_entropy = function(d)
    local target = weft.randint { 500, low = 0, high = 1001, rng = weft.random.stream("determinism target", 1) }
    return everything(function(x) return weft.cross_entropy(x, target, -100, 0.1) end, { randn("x", { 500, 1001 }, d) })
  end,
  ["embedding and scatter_add"] = function(d)
    local ids = weft.randint { 5000, low = 0, high = 50, rng = weft.random.stream("determinism ids", 1) }
    return everything(function(w) return weft.embedding(ids, w) end, { randn("w", { 50, 33 }, d) })
  end,
  conv2d = function(d)
    return everything(function(x, w, b) return weft.conv2d(x, w, b, 2, 2, 1, 1) end,
      { randn("x", { 3, 4, 41, 43 }, d), randn("w", { 20, 4, 3, 3 }, d), randn("bias", { 20 }, d) })
  end,
}

-- 20 steps of a small classifier; all its tensors at the end, and its losses.
local function train()
  local nn, optim = weft.nn, weft.optim
  weft.manual_seed(5)
  local model = nn.Sequential { nn.Linear(64, 200), nn.GELU(), nn.Dropout(0.1), nn.LayerNorm(200), nn.Linear(200, 100),
    nn.GELU(), nn.Linear(100, 7) }
  local o = optim.AdamW(model, { lr = 3e-3, weight_decay = 0.1 })
  local x = randn("pictures", { 300, 64 })
  local labels = (x:narrow(2, 1, 7)):argmax(2)
  local out = {}
  for step = 1, 20 do
    weft.random.set_step(step)
    weft.scope(function()
      local loss = weft.cross_entropy(model(x), labels)
      loss:backward()
      optim.clip_grad_norm(o, 1.0)
      o:step()
      o:zero_grad()
      out[#out + 1] = loss:detach():keep()
    end)
  end
  for _, p in ipairs(model:parameters()) do out[#out + 1] = p end
  return out
end

local function with_threads(n, fn, ...)
  local was = weft.threads()
  weft.threads(n)
  local ok, result = pcall(fn, ...)
  weft.threads(was)
  if not ok then error(result, 0) end
  return result
end

describe("1, 2 and 3 threads give the same bits", function()
  for name, fn in pairs(work) do
    it(("for %s and its gradients"):format(name), function()
      for _, dtype in ipairs { "float32", "float64" } do
        local one = bits(with_threads(1, fn, dtype))
        for n = 2, 3 do assert(one == bits(with_threads(n, fn, dtype)), ("%s, %d threads"):format(dtype, n)) end
      end
    end)
  end

  it("for 20 steps of training, which learns", function()
    local one = with_threads(1, train)
    for n = 2, 3 do assert.is_true(bits(one) == bits(with_threads(n, train))) end
    assert.is_true(one[20]:item() < 0.5 * one[1]:item())
  end)

  it("where runs repeat with one number of threads", function()
    assert.is_true(bits(with_threads(3, train)) == bits(with_threads(3, train)))
  end)
end)

describe("the paths of the CPU", function()
  -- prints a few numbers of each result of `work` and of training
  local program = [[
    local work, train = dofile "tests/determinism_spec.lua"
    local weft = require "weft"
    print(require("ffi").string(require("weft.core").lib.weft_cpu_path()))
    local names = {}
    for name in pairs(work) do names[#names + 1] = name end
    table.sort(names)
    local function show(name, list)
      for i, t in ipairs(list) do
        t = t:detach():to "float64":reshape(-1)
        local w = weft.randn { t:numel(), dtype = "float64", rng = weft.random.stream("sample", 1) }
        print(("%s %d\t%.12g\t%.12g"):format(name, i, (t * w):sum():item(), t:norm():item()))
      end
    end
    for _, name in ipairs(names) do show(name, work[name] "float32") end
    show("train", train())
  ]]

  it("agree to rounding", function()
    local seen, file = {}, os.tmpname()
    local f = assert(io.open(file, "w"))
    f:write("describe = function() end\n", program)
    f:close()
    for _, path in ipairs { "plain", "avx2", "avx512" } do
      local status, out, err = command.run(("WEFT_CPU=%s luajit %s"):format(path, file))
      assert.equal("", err)
      assert.equal(0, status)
      local rows = {}
      local used = out:match "^(%S+)\n"
      for name, projection, norm in out:gmatch "([^\n\t]+)\t(%S+)\t(%S+)" do
        rows[#rows + 1] = { name, tonumber(projection), tonumber(norm) }
      end
      seen[#seen + 1] = { used, rows }
    end
    os.remove(file)
    assert.equal("plain", seen[1][1])
    local count = #seen[1][2]
    assert.is_true(count > 60)
    for k = 2, 3 do
      assert.equal(count, #seen[k][2])
      for i, row in ipairs(seen[k][2]) do
        local plain = seen[1][2][i]
        -- a projection on random weights is of the size of the norm; training of 20 steps spreads rounding
        local tolerance = (row[1]:match "^train" and 2e-3 or 2e-5) * (plain[3] + 1e-6)
        assert(math.abs(row[2] - plain[2]) <= tolerance and math.abs(row[3] - plain[3]) <= tolerance,
          ("%s: %.9g and %.9g on %s, %.9g and %.9g plain"):format(row[1], row[2], row[3], seen[k][1], plain[2], plain[3]))
      end
    end
  end)
end)

return work, train
