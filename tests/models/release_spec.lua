-- What a model makes on its way is released as it goes: only the tape keeps anything for backward.
local weft = require "weft"
local state = require("weft.core").state

local function handles_of(fn)
  local made
  weft.scope(function()
    local before = tonumber(state.handles)
    fn()
    made = tonumber(state.handles) - before
  end)
  return made
end

-- How many handles each further layer leaves to the scope around a call.
local function by_layer(make)
  local few, many = make(2), make(6)
  few()
  many()  -- what is made once is made now
  return (handles_of(many) - handles_of(few)) / 4
end

local function dinov2(layers)
  local model = weft.models.dinov2.new { hidden_size = 32, num_hidden_layers = layers, num_attention_heads = 2, image_size = 28, patch_size = 14 }
  local pixels = weft.randn { 1, 3, 28, 28 }
  return function() return model(pixels) end
end

local function llama(layers)
  local model = weft.models.llama { vocab = 16, width = 32, layers = layers, ff = 48, heads = 2 }
  local ids = weft.randint { 1, 5, low = 0, high = 16 }
  return function() return model(ids) end
end

describe("a layer's temporaries", function()
  it("are released by dinov2 without the tape and with it", function()
    assert.is_true(by_layer(function(n)
      local run = dinov2(n)
      return function() return weft.no_grad(run) end
    end) <= 1)
    assert.is_true(by_layer(dinov2) <= 1)
  end)

  it("are released by llama", function()
    assert.is_true(by_layer(llama) <= 2)
  end)

  it("leave gradients as they were", function()
    local model = weft.models.llama { vocab = 16, width = 32, layers = 2, ff = 48, heads = 2 }
    local ids = weft.tensor({ { 1, 2, 3, 4 } }, { dtype = "int64" })
    weft.scope(function() model:loss(model:encode(ids), ids):backward() end)
    for name, t in model:named_parameters() do assert.is_truthy(t.grad, name) end
  end)
end)
