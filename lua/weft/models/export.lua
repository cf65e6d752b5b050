-- export.lua: trained models as directories that others load: a DINOv2 and a LLaMA in Hugging Face's layout,
-- and a whole model in one of our own. Adapters are merged on the way out; the model stays as it is.
local A = require "weft.args"
local disk = require "weft.files"
local json = require "weft.io.json"
local safetensors = require "weft.io.safetensors"
local no_grad = require("weft.autograd").no_grad

local M = {}

local function check(ok, message)
  if not ok then A.raise("export: %s", message) end
  return ok
end

-- What transformers 5 refuses where it is written as a whole number.
local float = { hidden_dropout_prob = true, attention_probs_dropout_prob = true, initializer_range = true, layer_norm_eps = true,
  layerscale_value = true, drop_path_rate = true }

local function write(dir, state, config)
  check(disk.make_dirs(dir))
  check(safetensors.save(dir .. "/model.safetensors", state, { format = "pt" }))
  check(json.write(dir .. "/config.json", config))
end

---Writes a DINOv2 as a Hugging Face directory, active adapters merged. Returns the largest difference that
---merging makes to the output on a random picture, as read back from the directory.
---@param model table  Dinov2
---@param dir string
---@param options? table  preprocessing: resize, size, mean, std (as of a run's pictures), force (false: true
--- writes it also where the adapter changes nothing)
---@return number difference, string? note
function M.encoder(model, dir, options)
  local o = A.options(options, { preprocessing = A.none, force = false }, "export.encoder")
  if not o.force then
    require("weft.peft.merge").refuse_idle(model, "export.encoder", "the base would be written; force = true does it all the same")
  end
  local dinov2 = require "weft.models.dinov2"
  local c, config = model.config, {}
  for key, v in pairs(c) do
    if key ~= "pos_interp" and key ~= "num_register_tokens" then config[key] = float[key] and json.float(v) or v end
  end
  local registers = c.num_register_tokens > 0
  config.model_type = registers and "dinov2_with_registers" or "dinov2"
  config.architectures = json.array { registers and "Dinov2WithRegistersModel" or "Dinov2Model" }
  config.dtype, config.torch_dtype = "float32", "float32"
  local state = require("weft.peft.merge").merged_state(model)
  if registers then
    config.num_register_tokens, config.use_mask_token = c.num_register_tokens, nil
    state["embeddings.mask_token"] = state["embeddings.mask_token"] or require("weft.tensor").create.zeros { 1, c.hidden_size }
  end
  for name, t in pairs(state) do state[name] = t.dtype == "float32" and t or t:to "float32" end
  write(dir, state, config)
  if o.preprocessing then
    check(json.write(dir .. "/preprocessor_config.json", require("weft.io.preprocess").to_file(o.preprocessing)))
  end

  local back = dinov2.from_pretrained(dir, { pos_interp = c.pos_interp })
  local training = model.training
  model:eval()
  local difference = no_grad(function()
    local side = c.patch_size * 3
    local pixels = require("weft.tensor").create.randn { 1, 3, side, side, rng = require("weft.random").stream("export", 1) }
    local mine = model(pixels:to(model.layernorm.weight.dtype)).last_hidden_state
    return (mine:to "float32" - back(pixels).last_hidden_state):abs():max():item()
  end)
  if training then model:train() end
  local rule = registers and "antialias" or "size"
  return difference, c.pos_interp ~= rule
    and ("positions are resized by the rule %s here, and by %s in transformers"):format(c.pos_interp, rule) or nil
end

-- Tokenizer files beside a language model.
local function tokenizer_files(dir, tokenizer, special, length)
  check(tokenizer:save(dir .. "/tokenizer.json"))
  local function name(id) return id and tokenizer:token(id) or json.null end
  local words = { bos_token = name(special.bos), eos_token = name(special.eos), pad_token = name(special.pad) }
  check(json.write(dir .. "/special_tokens_map.json", words))
  words.tokenizer_class, words.clean_up_tokenization_spaces, words.model_max_length = "PreTrainedTokenizerFast", false, length
  words.padding_side = "right"
  check(json.write(dir .. "/tokenizer_config.json", words))
end

---Writes a language model as a Hugging Face LLaMA directory, with tokenizer and generation settings.
---@param model table  Llama
---@param dir string
---@param options? table  tokenizer, special (ids: bos, eos, pad), length (2048: positions promised)
function M.language(model, dir, options)
  local o = A.options(options, { tokenizer = A.none, special = {}, length = 2048 }, "export.language")
  local c = model.config
  local function id(v) return v == nil and json.null or v end
  local ids = { bos_token_id = id(o.special.bos), eos_token_id = id(o.special.eos), pad_token_id = id(o.special.pad) }
  local config = {
    architectures = json.array { "LlamaForCausalLM" }, model_type = "llama", vocab_size = c.vocab, hidden_size = c.width,
    num_hidden_layers = c.layers, intermediate_size = c.ff, num_attention_heads = c.heads, num_key_value_heads = c.heads,
    head_dim = c.width / c.heads, rope_theta = json.float(c.rope_theta), rms_norm_eps = json.float(c.eps), tie_word_embeddings = c.tied, hidden_act = "silu",
    max_position_embeddings = o.length, attention_bias = false, mlp_bias = false, dtype = "float32", torch_dtype = "float32",
  }
  for key, v in pairs(ids) do config[key] = v end
  local state = require("weft.peft.merge").merged_state(model)
  local table_of = model.model.embed_tokens
  if c.tied and table_of.is_lora and #table_of.active > 0 then
    -- the output layer shares the table as it was, not as the adapter has it
    state["lm_head.weight"], config.tie_word_embeddings = table_of:plain_weight(), false
  end
  for name, t in pairs(state) do state[name] = t.dtype == "float32" and t or t:to "float32" end
  write(dir, state, config)
  check(json.write(dir .. "/generation_config.json", ids))
  if o.tokenizer then tokenizer_files(dir, o.tokenizer, o.special, o.length) end
end

---Writes a whole model: all parameters and buffers under the names of its modules, adapters merged, and a
---config.json that says what made it.
---@param model table
---@param dir string
---@param options? table  config (the recipe's), special, tokenizer, preprocessing, skip (names' beginnings to leave out)
function M.whole(model, dir, options)
  local o = A.options(options, { config = json.object {}, special = A.none, tokenizer = A.none, preprocessing = A.none, skip = {} },
    "export.whole")
  local state, kept = require("weft.peft.merge").merged_state(model, true), {}
  for name, t in pairs(state) do
    local left = false
    for _, start in ipairs(o.skip) do left = left or name:sub(1, #start) == start end
    if not left then kept[name] = t end
  end
  write(dir, kept, { format = "weft.model", format_version = 1, model = model.label or model.type, config = o.config,
    special = o.special or json.null })
  if o.preprocessing then
    check(json.write(dir .. "/preprocessor_config.json", require("weft.io.preprocess").to_file(o.preprocessing)))
  end
  if o.tokenizer then check(o.tokenizer:save(dir .. "/tokenizer.json")) end
end

return M
