-- original_spec.lua: adapters made on DINOv2 under its authors' names, where query, key and value are one layer.
local weft = require "weft"
local near = require "tests.support.near"
local run = require "tests.support.command"
local json = require "weft.io.json"
local safetensors = require "weft.io.safetensors"
local dinov2 = require "weft.models.dinov2"
local peft = weft.peft

local function message(fn, ...)
  local ok, text = pcall(fn, ...)
  assert.is_false(ok, "an error was expected")
  return text
end

local function base(swiglu) return dinov2.new { size = "tiny", use_swiglu_ffn = swiglu or false }:initialize(3) end

local function noise(t, use)
  local shape = t.shape
  shape.rng = weft.random.stream("original/" .. use, 1)
  return weft.randn(shape) * 0.2
end

-- An adapter on our names that one of theirs can mean: query, key and value have one A.
local function ours(o, swiglu)
  local settings = { rank = 2, alpha = 6, targets = { "query", "key", "value", "output.dense", swiglu and "weights_out" or "fc2" } }
  for k, v in pairs(o) do settings[k] = v end
  local m = peft.lora(base(swiglu), settings)
  weft.no_grad(function()
    for path, t in m:named_parameters() do
      if t.requires_grad then t:add_(noise(t, path)) end
    end
    for path, layer in m:named_modules() do
      if layer.is_lora and path:find "%.key$" or layer.is_lora and path:find "%.value$" then
        layer.lora_A.default.weight:copy_(m:get((path:gsub("%a+$", "query"))).lora_A.default.weight)
      end
    end
  end)
  return m
end

-- The same as PEFT has it on the original: blocks.N.attn.qkv, attn.proj, mlp.fc2 or w3.
local function write(m, dir, settings, metadata)
  local state, stacked = {}, {}
  for path, layer in m:named_modules() do
    for _, e in ipairs(layer.is_lora and layer:tensors "default" or {}) do
      local n, tail = path:match "layer%.(%d+)%.(.*)$"
      local place = ({ query = 1, key = 2, value = 3 })[tail:match "[^.]+$"]
      local name = ("base_model.model.blocks.%s.%s.%s"):format(n, place and "attn.qkv"
        or ({ ["attention.output.dense"] = "attn.proj", ["mlp.fc2"] = "mlp.fc2", ["mlp.weights_out"] = "mlp.w3" })[tail], e.tail)
      if place and e.tail ~= "lora_A.weight" then
        stacked[name] = stacked[name] or {}
        stacked[name][place] = e.tensor:detach()
      else state[name] = e.tensor end
    end
  end
  for name, list in pairs(stacked) do state[name] = weft.cat(list, 1) end
  if settings.bias == "all" then
    for path, layer in m:named_modules() do
      local name = dinov2.keys.original(path .. ".bias")
      if layer.type == "LayerNorm" and not path:find "module" then state["base_model.model." .. name] = layer.bias end
    end
    for path, layer in m:named_modules() do
      local n, tail = path:match "layer%.(%d+)%.(.*)$"
      if layer.is_lora and not path:find "attention%.attention" then
        state[("base_model.model.blocks.%s.%s.base_layer.bias"):format(n, tail == "mlp.fc2" and tail or "attn.proj")] = layer.base_layer.bias
      elseif tail == "attention.attention" then
        state[("base_model.model.blocks.%s.attn.qkv.base_layer.bias"):format(n)] = weft.cat({ layer.query.base_layer.bias:detach(),
          layer.key.base_layer.bias:detach(), layer.value.base_layer.bias:detach() }, 1)
      elseif tail == "mlp.fc1" then state[("base_model.model.blocks.%s.mlp.fc1.bias"):format(n)] = layer.bias end
    end
    state["base_model.model.patch_embed.proj.bias"] = m.embeddings.patch_embeddings.projection.bias
    -- and as PEFT writes those around a module saved whole
    state["base_model.model.norm.original_module.bias"] = m.layernorm.original_module.bias
    state["base_model.model.norm.modules_to_save.bias"] = m.layernorm.modules_to_save.default.bias
  end
  if m.layernorm.type == "SavedModule" then
    for tail, t in m.layernorm.modules_to_save.default:named_parameters() do state["base_model.model.norm." .. tail] = t end
  end
  assert(require("weft.files").make_dirs(dir))
  assert(safetensors.save(dir .. "/adapter_model.safetensors", state, metadata))
  local file = { peft_type = "LORA", r = 2, lora_alpha = 6, target_modules = json.array { "qkv", "proj", "fc2", "w3" } }
  for k, v in pairs(settings) do file[k] = v end
  assert(json.write(dir .. "/adapter_config.json", file))
  return state
end

describe("an adapter under the original project's names", function()
  local folder, remove
  setup(function() folder, remove = run.folder() end)
  teardown(function() remove() end)
  local pixels = weft.randn { 2, 3, 28, 42, rng = weft.random.stream("original/pixels", 1) }

  local exclude = { exclude_modules = json.array { "patch_embed.proj" } }
  for kind, case in pairs {
    plain = { {}, {} }, rslora = { { rslora = true }, { use_rslora = true } }, dora = { { dora = true }, { use_dora = true } },
    lora_bias = { { lora_bias = true }, { lora_bias = true } },
    ["one of SwiGLU"] = { {}, {}, true },
    saved = { { modules_to_save = { "layernorm" } }, { modules_to_save = json.array { "norm" } } },
    ["all biases"] = { { bias = "all", modules_to_save = { "layernorm" } }, { bias = "all", modules_to_save = json.array { "norm" } } },
    patterns = { { alpha_pattern = { ["layer.0.*"] = 3 } }, { alpha_pattern = { ["blocks.0.*"] = 3 } } },
    ["regular expression"] = { {}, { target_modules = [[blocks\.\d\.(attn\.(qkv|proj)|mlp\.fc2)]] } },
  } do
    it("is read as three adapters of one layer, is translated, and goes out under ours: " .. kind, function()
      local swiglu = case[3]
      local m, dir = ours(case[1], swiglu), folder .. "/" .. kind:gsub(" ", "-")
      local settings = { exclude_modules = exclude.exclude_modules }
      for k, v in pairs(case[2]) do settings[k] = v end
      write(m, dir, settings)
      local expected = weft.no_grad(m:eval(), pixels).last_hidden_state
      local function same(from)
        local back, report = peft.load(base(swiglu), from)
        near.near(weft.no_grad(back:eval(), pixels).last_hidden_state, expected, 1e-6, from)
        return back, report
      end
      local back, report = same(dir)
      assert.matches("names are those of the original DINOv2", report, 1, true)
      assert.matches("10 of 10 modules", report, 1, true)
      peft.save(back, dir .. "/again")
      same(dir .. "/again")
      for _, which in ipairs { "both", "transformers4", "transformers5" } do
        peft.convert(dir, dir .. "/" .. which, { dialect = which })
        same(dir .. "/" .. which)
      end
    end)
  end

  it("says what does not fit", function()
    local m, dir = ours {}, folder .. "/wrong"
    local state = write(m, dir, exclude)
    assert.matches("patch_embeddings.projection", message(function() write(m, dir, {}) return peft.load(base(), dir) end), 1, true)
    write(m, dir, { init_lora_weights = "pissa", exclude_modules = exclude.exclude_modules })
    assert.matches("it began by pissa on layers that are three here", message(peft.load, base(), dir))
    write(m, dir, exclude)
    assert.matches("this model is no DINOv2", message(peft.load, weft.nn.Linear(3, 3), dir))
    local name = "base_model.model.blocks.0.attn.qkv.lora_B.weight"
    state[name] = weft.zeros { 71, 2 }
    assert(safetensors.save(dir .. "/adapter_model.safetensors", state))
    assert.matches(name .. " is [71,2]: its rows are no three parts", message(peft.load, base(), dir), 1, true)
  end)
end)

describe("weights under the original project's names", function()
  it("are made of ours and read again, bit for bit", function()
    for _, size in ipairs { { size = "tiny" }, { size = "tiny", use_swiglu_ffn = true }, { size = "tiny", num_register_tokens = 4 } } do
      local m = dinov2.new(size):initialize(2)
      local mine = m:state_dict()
      local theirs = dinov2.keys.to_their_names(mine)
      assert.same({ 72, 24 }, theirs["blocks.1.attn.qkv.weight"].shape)
      for name in pairs(theirs) do
        assert.truthy(name:find "^blocks%.%d%.%l" or name:find "^patch_embed%.proj" or name:find "^norm%." or name == "pos_embed"
          or name:find "^%l+_tokens?$", name)
      end
      assert.is_not_nil(theirs[size.use_swiglu_ffn and "blocks.0.mlp.w12.weight" or "blocks.0.mlp.fc1.weight"])
      local back = dinov2.keys.translate(theirs)
      for name, t in pairs(mine) do assert.is_true(near.same(back[name], t), name) end
      for name in pairs(back) do assert.is_not_nil(mine[name], name) end
    end
    assert.matches("needs query, key and value", message(dinov2.keys.to_their_names,
      { ["encoder.layer.0.attention.attention.query.bias"] = weft.zeros { 2 } }))
  end)
end)
