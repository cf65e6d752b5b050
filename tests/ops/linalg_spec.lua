-- linalg_spec.lua: factors multiply back and are orthonormal, also without full rank; threads
-- change no bit.
local ffi = require "ffi"
local weft = require "weft"

local rng = weft.random.stream("linalg spec", 1)
local device = os.getenv "WEFT_TEST_DEVICE" or "cpu"

-- What a decomposition gives on the device under test, brought back.
local function there(decompose, ...)
  local inputs = { ... }
  for i, t in ipairs(inputs) do inputs[i] = t:to(device) end
  local results = { decompose(unpack(inputs)) }
  for i, t in ipairs(results) do results[i] = t:to "cpu" end
  return unpack(results)
end

local function largest(t) return t:numel() == 0 and 0 or t:abs():max():item() end
local function difference(a, b) return largest((a - b):reshape(-1):unsqueeze(1)) end
local function mt(x) return weft.transpose(x, -2, -1) end

local function matrices()
  local left = weft.randn { 9, 2, dtype = "float64", rng = rng }
  local low = weft.matmul(left, weft.randn { 2, 6, dtype = "float64", rng = rng })
  return {
    tall = weft.randn { 9, 4, dtype = "float64", rng = rng },
    wide = weft.randn { 3, 4, 9, dtype = "float64", rng = rng },
    large = weft.randn { 80, 80, dtype = "float64", rng = rng },
    ["of rank 2"] = low, ["of rank 2, wide"] = mt(low):contiguous(),
    zero = weft.zeros { 4, 3, dtype = "float64" },
    huge = weft.randn { 4, 3, dtype = "float64", rng = rng } * 1e150,
    tiny = weft.randn { 3, 4, dtype = "float64", rng = rng } * 1e-200,
    ["of equal rows"] = weft.ones { 5, 5, dtype = "float64" },
    ["of unequal columns"] = weft.randn { 8, 3, dtype = "float64", rng = rng } * weft.tensor({ 1, 1e-9, 1e-14 }, { dtype = "float64" }),
  }
end

local function assert_orthonormal(q, name)
  local shape = q.shape
  local eye = weft.eye(shape[#shape], { dtype = "float64" })
  local product = weft.matmul(mt(q), q)
  assert(difference(product, eye:expand(unpack(product.shape))) < 1e-12, name)
end

describe("matrix factors", function()
  it("of svd multiply back, are orthonormal and fall", function()
    for name, x in pairs(matrices()) do
      local u, s, vh = there(weft.svd, x)
      local back = weft.matmul(u * s:unsqueeze(-2), vh)
      local scale = math.max(largest(x:reshape(-1)), 1e-300)
      assert(difference(back / scale, x / scale) < 1e-12, name)
      assert_orthonormal(u, name)
      assert_orthonormal(mt(vh):contiguous(), name)
      local values = s:reshape(-1, s.shape[#s.shape]):totable()
      for _, row in ipairs(values) do
        for i = 1, #row do assert(row[i] >= 0 and (i == 1 or row[i] <= row[i - 1]), name) end
      end
    end
  end)

  it("of qr multiply back, with r upper and its diagonal not negative", function()
    for name, x in pairs(matrices()) do
      local q, r = there(weft.qr, x)
      local scale = math.max(largest(x:reshape(-1)), 1e-300)
      assert(difference(weft.matmul(q, r) / scale, x / scale) < 1e-12, name)
      assert_orthonormal(q, name)
      local shape = r.shape
      for _, matrix in ipairs(r:reshape(-1, shape[#shape - 1], shape[#shape]):totable()) do
        for i, row in ipairs(matrix) do
          assert(row[i] >= 0, name)
          for j = 1, i - 1 do assert(row[j] == 0, name) end
        end
      end
    end
  end)

  it("are the same bits with 1 and 2 threads", function()
    local x = weft.randn { 70, 6, 5, rng = rng }
    local before = weft.threads()
    local seen = {}
    for n = 1, 2 do
      weft.threads(n)
      local u, s = weft.svd(x)
      local q = weft.qr(x)
      local text = ""
      for _, t in ipairs { u, s, q } do text = text .. ffi.string(t.p.v.data, t:numel() * 4) end
      seen[n] = text
    end
    weft.threads(before)
    assert.is_true(seen[1] == seen[2])
  end)

  it("name the matrix of a batch that can't be factored or solved", function()
    local good = { { 2, 1 }, { 1, 2 } }
    assert.error_matches(function() there(weft.cholesky, weft.tensor { good, { { 1, 2 }, { 2, 1 } }, { { -1, 0 }, { 0, 1 } } }) end,
      "matrix 1 is not positive definite %(its leading 2 rows")
    assert.error_matches(function()
      there(weft.solve, weft.tensor { good, { { 1, 2 }, { 2, 4 } } }, weft.ones { 2, 2, 1 })
    end, "matrix 1 is singular %(pivot 2 is 0%)")
    assert.error_matches(function() there(weft.svd, weft.tensor { { 1, 0 / 0 } }) end,
      "NaN or infinity .* position 2")
  end)
end)
