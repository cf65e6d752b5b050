-- export_spec.lua: models written for others and read back: the same outputs, merged adapters, complete
-- settings; and the model that was exported is as before.
local weft = require "weft"
local compare = require "tests.models.compare"
local run = require "tests.support.command"
local json = require "weft.io.json"
local safetensors = require "weft.io.safetensors"
local export = require "weft.models.export"
local dinov2 = require "weft.models.dinov2"
local peft = weft.peft

describe("export", function()
  local folder, remove
  setup(function() folder, remove = run.folder() end)
  teardown(function() remove() end)
  local function forward(m, x) return weft.no_grad(function() return m(x).last_hidden_state end) end

  for _, kind in ipairs { "mlp", "swiglu", "registers" } do
    it("writes a " .. kind .. " encoder with its adapter merged, and leaves the model alone", function()
      local pixels = compare.golden("dinov2_" .. kind .. "/io.safetensors")["wide.pixel_values"]
      local plain = dinov2.from_pretrained("tests/golden/dinov2_" .. kind)
      local model = dinov2.from_pretrained("tests/golden/dinov2_" .. kind)
      peft.lora(model, { rank = 4, init = "random", targets = { "query", "value" } }):eval()
      local with = forward(model, pixels)
      local dir = folder .. "/" .. kind
      local difference = export.encoder(model, dir, { preprocessing = { resize = 80, size = 70, mean = { 0.1, 0.2, 0.3 }, std = { 1, 2, 3 } } })
      assert.is_true(difference < 1e-4, difference)
      assert.is_true(compare.same(forward(model, pixels), with))
      local back = dinov2.from_pretrained(dir)
      compare.close(forward(back, pixels), with, 2e-5)
      assert.is_true(compare.error(forward(plain, pixels), with) > 1e-2)
      local names = assert(safetensors.open("tests/golden/dinov2_" .. kind .. "/model.safetensors")).names
      local mine = assert(safetensors.open(dir .. "/model.safetensors")).names
      table.sort(names)
      table.sort(mine)
      assert.same(names, mine)
      local theirs, ours = json.read("tests/golden/dinov2_" .. kind .. "/config.json"), json.read(dir .. "/config.json")
      for _, key in ipairs { "model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size", "mlp_ratio",
        "layer_norm_eps", "use_swiglu_ffn", "num_register_tokens", "qkv_bias", "use_mask_token" } do
        assert.equal(theirs[key], ours[key], key)
      end
      -- readers with types refuse whole numbers there
      local text = assert(require("weft.files").read(dir .. "/config.json"))
      assert.matches('"layerscale_value": 1%.0', text)
      assert.matches('"drop_path_rate": 0%.0', text)
      assert.matches('"image_size": %d+,', text)
      assert.equal("resize 80 bicubic antialiased, crop 70: keeps 77 % of a square picture", tostring(require("weft.io.preprocess").read(dir)))
    end)
  end

  it("says where transformers resizes positions by another rule", function()
    local model = dinov2.from_pretrained("tests/golden/dinov2_mlp", { pos_interp = "offset" })
    local _, note = export.encoder(model, folder .. "/offset")
    assert.matches("offset here, and by size in transformers", note)
  end)

  it("writes a language model with the names, settings and tokenizer of a LLaMA", function()
    local Llama = require "weft.models.llama"
    local model = Llama.from_pretrained "tests/golden/llama_tiny"
    local tokenizer = assert(weft.io.tokenizer.load "tests/golden/tokenizer/tokenizer.json")
    local dir = folder .. "/language"
    export.language(model, dir, { tokenizer = tokenizer, special = { bos = 1, eos = 2, pad = 0 }, length = 128 })
    local ids = weft.tensor { { 1, 7, 9, 30 } }:to "int64"
    assert.is_true(compare.same(forward(Llama.from_pretrained(dir), ids), forward(model, ids)))
    local theirs, ours = json.read "tests/golden/llama_tiny/config.json", json.read(dir .. "/config.json")
    for _, key in ipairs { "model_type", "vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads",
      "num_key_value_heads", "head_dim", "rope_theta", "rms_norm_eps", "tie_word_embeddings", "hidden_act", "max_position_embeddings",
      "bos_token_id", "eos_token_id", "pad_token_id" } do
      assert.equal(theirs[key], ours[key], key)
    end
    assert.equal(2, json.read(dir .. "/generation_config.json").eos_token_id)
    assert.equal(tokenizer:token(2), json.read(dir .. "/tokenizer_config.json").eos_token)
    assert.equal(tokenizer.size, assert(weft.io.tokenizer.load(dir .. "/tokenizer.json")).size)
  end)

  it("gives the output layer of a tied language model its own table where an adapter moved the other", function()
    local Llama = require "weft.models.llama"
    local model = Llama.from_pretrained "tests/golden/llama_tiny"
    peft.lora(model, { rank = 2, init = "random", targets = { "embed_tokens" } })
    local ids = weft.tensor { { 1, 7, 9, 30 } }:to "int64"
    local function logits(m) return weft.no_grad(function() return m:logits(m(ids).last_hidden_state) end) end
    export.language(model, folder .. "/untied")
    compare.close(logits(Llama.from_pretrained(folder .. "/untied")), logits(model), 1e-5)
    assert.is_false(json.read(folder .. "/untied/config.json").tie_word_embeddings)
  end)

  it("writes a whole model by the names of its modules, without what is left out", function()
    local Both = weft.nn.Module "ExportBoth"
    function Both:init()
      self.vision = peft.lora(dinov2.from_pretrained "tests/golden/dinov2_mlp", { rank = 2, init = "random" })
      self.queue = weft.nn.Linear(2, 2)
      self:register_buffer("steps", weft.ones { 3 })
    end
    local model, dir = Both(), folder .. "/whole"
    export.whole(model, dir, { config = { rank = 2 }, skip = { "queue." } })
    local state = assert(safetensors.load(dir .. "/model.safetensors"))
    assert.is_nil(state["queue.weight"])
    assert.same({ 3 }, state.steps.shape)
    local name = "vision.encoder.layer.1.attention.attention.query.weight"
    compare.close(state[name], (model:get("vision.encoder.layer.1.attention.attention.query"):merged_weights()), 0)
    assert.equal(2, json.read(dir .. "/config.json").config.rank)
    for key in pairs(state) do assert.is_nil(key:find "lora_", key) end
  end)
end)
