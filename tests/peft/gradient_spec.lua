-- gradient_spec.lua: the gradient of everything that each kind of adapter trains, beside central differences.
local weft = require "weft"
local nn, peft = weft.nn, weft.peft

-- A picture through a convolution, words through a table, both through linear layers.
local Net = nn.Module "Net"
function Net:init()
  self.conv = nn.Conv2d(2, 3, { kernel = 2, stride = 2 })
  self.words = nn.Embedding(5, 4)
  self.query, self.value, self.classifier = nn.Linear(4, 3), nn.Linear(3, 4), nn.Linear(4, 2)
end
function Net:forward(pixels, ids)
  local h = self.value((self.conv(pixels):mean(3):mean(3) + self.query(self.words(ids):mean(2))):tanh())
  return self.classifier(h)
end

local ids = weft.tensor({ { 0, 3 }, { 4, 4 } }, { dtype = "int64" })

local kinds = {
  plain = {}, rslora = { rslora = true }, lora_bias = { lora_bias = true, targets = { "query", "conv" } },
  dora = { dora = true }, ["dropout"] = { dropout = 0.4 }, ["dora with dropout"] = { dora = true, dropout = 0.4 },
  ["bias lora_only"] = { bias = "lora_only" }, ["bias all"] = { bias = "all" }, saved = { modules_to_save = { "classifier" } },
  conv2d = { targets = { "conv" } }, ["conv2d with dora"] = { targets = { "conv" }, dora = true },
  ["conv2d with dropout"] = { targets = { "conv" }, dropout = 0.4, dora = true },
  embedding = { targets = { "words" } }, ["embedding with dora"] = { targets = { "words" }, dora = true },
  pissa = { init = "pissa" }, pissa_niter = { init = "pissa_niter_2" }, olora = { init = "olora" },
  orthogonal = { init = "orthogonal" }, gaussian = { init = "gaussian" },
  patterns = { rank_pattern = { value = 1 }, alpha_pattern = { query = 5 } },
}

-- An adapter whose every tensor has moved from where it began.
local function trained(o, m)
  local settings = { rank = 2, alpha = 3, targets = { "query", "value" }, seed = 3 }
  for key, v in pairs(o) do settings[key] = v end
  m = peft.lora(m or Net():initialize(1):to "float64", settings):train():assign_paths()
  weft.no_grad(function()
    local stream = weft.random.stream("moved", 1)
    for _, t in m:named_parameters() do
      if t.requires_grad then
        local shape = t.shape
        shape.rng, shape.dtype = stream, "float64"
        t:add_(weft.randn(shape) * 0.3)
      end
    end
  end)
  return m
end

-- Lengths of rows count as constants of the gradient, so they have to stay where they are.
local function hold_lengths(m)
  for _, layer in m:named_modules() do
    if layer.is_lora then
      local kept = {}
      for name, s in pairs(layer.settings) do
        if s.dora then kept[name] = layer:row_norms(name):keep() end
      end
      rawset(layer, "row_norms", function(_, name) return kept[name] end)
    end
  end
end

local function check(m)
  hold_lengths(m)
  local inputs = { weft.randn { 2, 2, 4, 4, dtype = "float64", rng = weft.random.stream("pixels", 1) }:requires_grad_() }
  for _, t in m:named_parameters() do
    if t.requires_grad then inputs[#inputs + 1] = t end
  end
  assert(weft.gradcheck(function(pixels)
    weft.manual_seed(7)  -- the same values are dropped each time
    return m(pixels, ids)
  end, inputs))
  return #inputs - 1
end

describe("gradients agree with differences", function()
  for kind, o in pairs(kinds) do
    it("of " .. kind, function()
      local n = check(trained(o))
      assert.is_true(n >= 2)
      if kind == "bias all" then assert.equal(4 + 4, n) end
    end)
  end

  it("of several adapters that are active at once", function()
    local m = trained({ adapter = "b", dora = true, rank = 1 }, trained { adapter = "a" })
    peft.activate(m, { "a", "b" })
    assert.equal(4 + 6, check(m))
  end)
end)
