-- rows_spec.lua: what is a part of a larger tensor, rows that lie apart, is read as it lies: no copy is made
-- of it, and the results are those of a copy.
local weft = require "weft"
local counts = require "tests.support.counts"
local gpu = require "tests.support.gpu"
local near = require("tests.support.near").near

local device = gpu.device
local it = gpu.guard(it, pending)

local function randn(name, ...) return weft.randn { rng = weft.random.stream("rows apart " .. name, 4), ... } end

-- t amid a tensor that is larger by some in its last two dims: rows that lie apart, in blocks that do.
local function amid(t, more)
  local shape = t.shape
  local n = #shape
  local rows, columns = shape[n - 1], shape[n]
  shape[n - 1], shape[n] = rows + 3, columns + more
  local view = weft.full { value = 7, dtype = t.dtype, device = device, unpack(shape) }:narrow(n - 1, 2, rows):narrow(n, more / 2 + 1, columns)
  view:copy_(t)
  return view
end

local function same(fn, tensors, more, launches, dtype)
  local plain, apart = {}, {}
  for i, t in ipairs(tensors) do
    plain[i] = t:to(dtype):to(device)
    apart[i] = amid(plain[i], more)
  end
  local want, got = fn(plain), nil
  local copies = counts.copies()
  local n = gpu.launches(function() got = fn(apart) end)
  assert.equal(copies, counts.copies())
  if launches then assert.equal(launches, n) end
  for i, w in ipairs(want) do near(got[i], w, dtype == "bfloat16" and 1e-2 or 1e-5, ("%s, result %d"):format(dtype, i)) end
end

-- A layer's result and the gradients of its leaves, from inputs { x, dy } that lie anywhere.
local function layer(leaves, fn)
  return function(inputs)
    local x = inputs[1]:detach():requires_grad_()
    local own = {}
    for i, t in ipairs(leaves) do own[i] = t:to(x.dtype):to(device):detach():requires_grad_() end
    local y = fn(x, unpack(own))
    y:backward { gradient = inputs[2] }
    local out = { y, x.grad }
    for _, t in ipairs(own) do out[#out + 1] = t.grad end
    return out
  end
end

describe("rows that lie apart, on " .. device .. ",", function()
  for _, dtype in ipairs { "float32", "bfloat16" } do
    it("are multiplied as they lie by linear layers, in blocks as a batch, in " .. dtype, function()
      local w, b = randn("w", 24, 40), randn("b", 24)
      local linear = layer({ w, b }, weft.linear)
      for _, more in ipairs { 16, 2 } do
        same(linear, { randn("x", 70, 40), randn("dy", 70, 24) }, more, nil, dtype)
        local x, frozen = randn("blocks", 3, 70, 40):to(dtype):to(device), w:to(dtype):to(device)
        same(function(t) return { weft.linear(t[1], frozen) } end, { x }, more, 1, dtype)
        -- low blocks cost less as one matrix: one more launch, which copies them
        same(function(t) return { weft.linear(t[1], frozen) } end, { randn("low", 5, 4, 40) }, more, 2, dtype)
      end
      same(linear, { randn("x blocks", 2, 70, 40), randn("dy blocks", 2, 70, 24) }, 8, nil, dtype)
      same(function(t) return { weft.linear(t[1]:narrow(1, 1, 1):expand(6, 40), w:to(dtype):to(device)) } end,
        { randn("one row", 2, 40) }, 8, nil, dtype)
    end)

    it("are the gradients of norms, in " .. dtype, function()
      for _, width in ipairs { 40, 37 } do
        local x, m = randn("x", 3, 20, width):to(dtype):to(device), randn("m", 3, 20, width):to(dtype):to(device)
        local w, b = randn("weight", width):to(dtype):to(device), randn("bias", width):to(dtype):to(device)
        for _, more in ipairs { 16, 2 } do
          same(function(t)
            local p, q = x:detach():requires_grad_(), w:detach():requires_grad_()
            weft.layer_norm(p, q, b):backward { gradient = t[1] }
            local r, s = x:detach():requires_grad_(), w:detach():requires_grad_()
            local _, y = weft.add_rms_norm(r, m, s)
            y:backward { gradient = t[1] }
            return { p.grad, q.grad, r.grad, s.grad }
          end, { randn("dy", 3, 20, width) }, more, nil, dtype)
        end
      end
    end)

    it("are the gradients of embeddings, in " .. dtype, function()
      local table_of = randn("table", 11, 24):to(dtype):to(device)
      local ids = weft.tensor({ { 1, 10, 1, 7, 7 }, { 7, 0, 10, 1, 3 } }, { dtype = "int64" }):to(device)
      local apart = weft.zeros { 2, 9, dtype = "int64", device = device }:narrow(2, 3, 5)
      apart:copy_(ids)
      for _, more in ipairs { 16, 2 } do
        same(function(t)
          local p = table_of:detach():requires_grad_()
          local y = weft.embedding(apart, p)
          y:backward { gradient = t[1] }
          near(weft.embedding(ids, p), y, 0, "embedding")
          return { y, p.grad }
        end, { randn("dy", 2, 5, 24) }, more, nil, dtype)
      end
    end)
  end

  it("are the gradients of losses that are kept row by row", function()
    local x = randn("logits", 9, 5):to(device)
    local target = weft.tensor({ 0, 4, 3, 1, 2, 2, 0, 1, 4 }, { dtype = "int64" }):to(device)
    same(function(t)
      local p = x:detach():requires_grad_()
      weft.cross_entropy(p, target, -100, 0, "none"):backward { gradient = t[1]:select(2, 1) }
      local q = x:detach():requires_grad_()
      weft.cross_entropy_soft(q, weft.softmax(x, 2), "none"):backward { gradient = t[1]:select(2, 2) }
      return { p.grad, q.grad }
    end, { randn("dloss", 9, 4) }, 6, nil, "float32")
  end)
end)
