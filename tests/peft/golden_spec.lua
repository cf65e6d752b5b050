-- golden_spec.lua: adapters that PEFT wrote, of both generations of its stack: outputs, gradients, counts,
-- merged weights.
local weft = require "weft"
local near = require "tests.support.near"
local json = require "weft.io.json"
local safetensors = require "weft.io.safetensors"
local dinov2 = require "weft.models.dinov2"
local keys = require "weft.models.dinov2_keys"
local peft = weft.peft

local variants = { "plain", "rslora", "dora", "bias", "bias_all", "lora_bias", "patterns", "layers", "all_linear", "regex", "saved" }
local newer = { "plain", "dora", "bias_all", "patterns", "all_linear", "saved" }

local function model() return dinov2.from_pretrained "tests/golden/dinov2_mlp" end
local function golden(name)
  local g, metadata = assert(safetensors.load("tests/golden/lora/" .. name .. "/io.safetensors"))
  return g, json.decode(metadata.counts)
end

for _, name in ipairs(variants) do
  describe("the adapter " .. name, function()
    local g, counts = golden(name)
    local m, report = peft.load(model(), "tests/golden/lora/" .. name, { trainable = true })
    -- biases of the base that PEFT trained and did not write stay as the base has them
    local y = m(g.pixel_values).last_hidden_state

    it("gives the output that PEFT gave", function()
      near.near(y, g.last_hidden_state, 3e-6)
      assert.matches("^adapter default: %d+ of %d+ modules, scale [%d./]+, median norm of dW/W %d+ %%$", report)
    end)

    it("trains what PEFT trained", function()
      assert.equal(counts.trainable, m:count(true))
      assert.equal(counts.all, m:count())
    end)

    it("gives the gradients that PEFT gave", function()
      m:zero_grad()
      weft.backward((m(g.pixel_values).last_hidden_state * g.loss_weight):sum())
      local n = 0
      for path, t in m:named_parameters() do
        local expected = g["grad.base_model.model." .. path:gsub("%.default", "")]
        if t.requires_grad then
          assert(expected, path .. " should not train")
          -- the gradient of a key's bias is zero in exact arithmetic
          near.near(t.grad, expected, path:find "key.bias" and 1e-4 or 2e-5, path)
          n = n + 1
        else
          assert(t.grad == nil and expected == nil, path)
        end
      end
      assert.is_true(n > 0)
    end)

    it("gives the merged weights and output that PEFT gave, and comes apart again", function()
      local before = m:state_dict()["encoder.layer.1.attention.attention.query.base_layer.weight"]
        or m:state_dict()["encoder.layer.1.attention.attention.query.weight"]
      local kept = before:detach():clone()
      weft.no_grad(function()
        peft.merge(m)
        near.near(m(g.pixel_values).last_hidden_state, g["merged.last_hidden_state"], 5e-6)
        near.near(m(g.pixel_values).last_hidden_state, y, 1e-5)
        for key, expected in pairs(g) do
          local path = key:match "^merged%.(.*)%.weight$"
          if path then
            local linear = m:get(path)
            near.near((linear.base_layer or linear).weight, expected, 2e-6, path)
          end
        end
        peft.unmerge(m)
        assert.is_true(near.same(m(g.pixel_values).last_hidden_state, y))
        local linear = m:get "encoder.layer.1.attention.attention.query"
        assert.is_true(near.same((linear.base_layer or linear).weight, kept))
      end)
    end)
  end)
end

for _, name in ipairs(newer) do
  it("reads the adapter " .. name .. " of the newer generation to the same output", function()
    local g, counts = golden(name)
    local m = peft.load(model(), "tests/golden/lora_transformers5/" .. name, { trainable = true })
    near.near(weft.no_grad(m, g.pixel_values).last_hidden_state, g.last_hidden_state, 3e-6)
    assert.equal(counts.trainable, m:count(true))
  end)
end

-- What a stack that knows one set of names finds in a directory: the modules it would wrap, and values.
local function as_seen_by(generation, dir)
  local match, config = require "weft.peft.match", require "weft.peft.config"
  local dialect = require "weft.peft.dialect"
  local file = assert(json.read(dir .. "/adapter_config.json"))
  local c = config.from_file(file, dir, "default")
  local state = assert(safetensors.load(dir .. "/adapter_model.safetensors"))
  local out = {}
  for _, item in ipairs(match.linears(model())) do
    local path = generation == "transformers5" and dialect.newer(item[1]) or item[1]
    local a = state["base_model.model." .. path .. ".lora_A.weight"]
    local meant = match.target(c, path) ~= nil
    assert(meant == (a ~= nil), path .. " is named in one of the two files alone")
    if meant then
      local rank, _, scaling = match.sizes(c, path)
      assert.equal(rank, a:size(1))
      out[item[1]] = { a = a, b = state["base_model.model." .. path .. ".lora_B.weight"], scaling = scaling }
    end
  end
  return out
end

describe("saving", function()
  for _, name in ipairs(variants) do
    it("writes " .. name .. " so that both generations and weft read what was there", function()
      local g = golden(name)
      local m = peft.load(model(), "tests/golden/lora/" .. name, { trainable = true })
      local y = weft.no_grad(m, g.pixel_values).last_hidden_state
      local dir = os.tmpname()
      os.remove(dir)
      peft.save(m, dir, { base = "dinov2_mlp" })
      local old, new = as_seen_by("transformers4", dir), as_seen_by("transformers5", dir)
      local n = 0
      for path, o in pairs(old) do
        n = n + 1
        assert.is_true(near.same(o.a, new[path].a) and near.same(o.b, new[path].b))
        assert.equal(o.scaling, new[path].scaling)
        assert.equal(m:get(path):scale_of "default", o.scaling)
      end
      assert.is_true(n > 0)
      for _, dialect in ipairs { "both", "transformers4", "transformers5" } do
        peft.save(m, dir, { base = "dinov2_mlp", dialect = dialect })
        local again = peft.load(model(), dir)
        near.near(weft.no_grad(again, g.pixel_values).last_hidden_state, y, 0, dialect)
      end
      require("weft.files").remove_dir(dir)
    end)
  end

  it("writes PEFT's keys, and its own file again with the same values", function()
    local dir = os.tmpname()
    os.remove(dir)
    for _, name in ipairs { "plain", "rslora", "dora", "patterns", "layers", "saved", "regex" } do
      local from = "tests/golden/lora/" .. name
      peft.save(peft.load(model(), from), dir, { base = "dinov2_mlp", dialect = "transformers4" })
      local theirs, ours = assert(json.read(from .. "/adapter_config.json")), assert(json.read(dir .. "/adapter_config.json"))
      for key, value in pairs(ours) do
        if key == "target_modules" and type(value) == "table" then
          -- a set in PEFT: in any order
          table.sort(theirs[key])
          table.sort(value)
        end
        if key ~= "auto_mapping" then
          assert.equal(json.encode(theirs[key]), json.encode(value), name .. " " .. key)
        end
      end
      for key in pairs(theirs) do assert.is_not_nil(ours[key], key) end
      local a = assert(safetensors.load(from .. "/adapter_model.safetensors"))
      local b = assert(safetensors.load(dir .. "/adapter_model.safetensors"))
      for key, t in pairs(a) do assert.is_true(near.same(t, b[key]), key) end
      for key in pairs(b) do assert.is_not_nil(a[key], key) end
    end
    peft.save(peft.load(model(), "tests/golden/lora_transformers5/plain"), dir, { dialect = "transformers5" })
    local ours = assert(json.read(dir .. "/adapter_config.json"))
    for key in pairs(assert(json.read "tests/golden/lora_transformers5/plain/adapter_config.json")) do
      assert.is_not_nil(ours[key], key)
    end
    require("weft.files").remove_dir(dir)
  end)
end)

it("knows the newer names by the table that model files use too", function()
  local dialect = require "weft.peft.dialect"
  for _, item in ipairs(require("weft.peft.match").linears(model())) do
    assert.equal(item[1], dialect.ours(dialect.newer(item[1])))
    assert.equal(item[1] .. ".weight", keys.ours(dialect.newer(item[1]) .. ".weight"))
  end
end)

describe("PiSSA and OLoRA", function()
  local g = assert(safetensors.load "tests/golden/lora_init.safetensors")
  for _, kind in ipairs { "pissa", "olora" } do
    it("start " .. kind .. " from a part of the weight that the base then lacks", function()
      local nn = weft.nn
      local Net = nn.Module "Net"
      function Net:init() self.fc = nn.Linear(24, 16) end
      function Net:forward(x) return self.fc(x) end
      local m = Net()
      local W = g[kind .. ".weight"]
      weft.no_grad(function() m.fc.weight:copy_(W) end)
      local x = weft.randn { 5, 24 }
      local y = weft.no_grad(m, x)
      peft.lora(m, { rank = 4, alpha = 8, targets = { "fc" }, init = kind })
      near.near(weft.no_grad(m, x), y, 1e-5)
      near.near(m.fc.base_layer.weight + m.fc:delta "default", W, 1e-5)
      near.near(m.fc:delta "default", weft.matmul(g[kind .. ".0.lora_B.default.weight"], g[kind .. ".0.lora_A.default.weight"]) * 2, 1e-5)
      near.near(m.fc.base_layer.weight, g[kind .. ".0.base_layer.weight"], 1e-5)

      -- after some training it is written for the base as it was
      weft.no_grad(function() m.fc.lora_B.default.weight:add_(0.1) end)
      local trained = weft.no_grad(m, x)
      local dir = os.tmpname()
      os.remove(dir)
      peft.save(m, dir)
      local plain = Net()
      weft.no_grad(function()
        plain.fc.weight:copy_(W)
        plain.fc.bias:copy_(m.fc.base_layer.bias)
      end)
      peft.load(plain, dir)
      near.near(weft.no_grad(plain, x), trained, 1e-5)
      assert.equal(8, plain.fc.settings.default.rank)
      require("weft.files").remove_dir(dir)

      peft.delete(m, "default")
      near.near(m.fc.weight, W, 1e-5)
    end)
  end
end)
