-- dinov2_config.lua: sizes of DINOv2 models and what config.json says. Keys are those of config.json.
-- Sizes and defaults are those of the published checkpoints, not of any library's classes.
local A = require "weft.args"
local settings = require "weft.models.settings"

local M = {}

---Published sizes; `<name>-registers` adds four register tokens. tiny is for tests.
M.sizes = {
  tiny = { hidden_size = 24, num_hidden_layers = 2, num_attention_heads = 2, image_size = 28 },
  small = { hidden_size = 384, num_hidden_layers = 12, num_attention_heads = 6 },
  base = { hidden_size = 768, num_hidden_layers = 12, num_attention_heads = 12 },
  large = { hidden_size = 1024, num_hidden_layers = 24, num_attention_heads = 16 },
  giant = { hidden_size = 1536, num_hidden_layers = 40, num_attention_heads = 24, use_swiglu_ffn = true },
}

M.defaults = {
  hidden_size = A.required, num_hidden_layers = A.required, num_attention_heads = A.required,
  image_size = 518, patch_size = 14, num_channels = 3, mlp_ratio = 4, use_swiglu_ffn = false,
  qkv_bias = true, layer_norm_eps = 1e-6, layerscale_value = 1.0, drop_path_rate = 0,
  hidden_dropout_prob = 0, attention_probs_dropout_prob = 0, num_register_tokens = 0,
  use_mask_token = true, initializer_range = 0.02, hidden_act = "gelu", pos_interp = A.none,
}

-- Keys of config.json that change nothing here.
local ignored = {
  "architectures", "dtype", "torch_dtype", "model_type", "out_features", "out_indices", "stage_names",
  "reshape_hidden_states", "apply_layernorm", "transformers_version", "_name_or_path", "return_dict",
  "output_attentions", "output_hidden_states", "id2label", "label2id", "num_labels", "problem_type",
}

local kinds = {
  hidden_size = "size", num_hidden_layers = "layers", num_attention_heads = "size", image_size = "size", patch_size = "size",
  num_channels = "size", mlp_ratio = "positive", use_swiglu_ffn = "boolean", qkv_bias = "boolean", layer_norm_eps = "from_zero",
  layerscale_value = "number", drop_path_rate = "rate", hidden_dropout_prob = "rate", attention_probs_dropout_prob = "rate",
  num_register_tokens = "count", use_mask_token = "boolean", initializer_range = "from_zero", hidden_act = "text", pos_interp = "text",
}

---A complete config from a size's name ("base", "base-registers"), or a table that may name a `size`.
---@param spec string|table
---@return table
function M.complete(spec)
  if type(spec) == "string" then spec = { size = spec } end
  if type(spec) ~= "table" then A.raise("dinov2: a size or a table of options is expected, got %s", A.typename(spec)) end
  local merged = {}
  if spec.size then
    local name, registers = spec.size, spec.size:match "^(.*)%-registers$"
    local base = M.sizes[registers or name]
    if not base then
      local known = {}
      for k in pairs(M.sizes) do known[#known + 1] = k end
      A.raise("dinov2: unknown size %s%s", name, A.suggest(name, known))
    end
    for k, v in pairs(base) do merged[k] = v end
    if registers then merged.num_register_tokens, merged.use_mask_token = 4, true end
  end
  for k, v in pairs(spec) do
    if k ~= "size" then merged[k] = v end
  end
  local config = A.options(merged, M.defaults, "dinov2")
  settings.check("dinov2", config, kinds)
  if config.hidden_act ~= "gelu" then
    A.raise("dinov2: hidden_act %s: only gelu (exact) is known; the published models use it", tostring(config.hidden_act))
  end
  if config.hidden_size % config.num_attention_heads ~= 0 then
    A.raise("dinov2: hidden_size %d is no multiple of %d heads", config.hidden_size, config.num_attention_heads)
  end
  if config.patch_size > config.image_size then
    A.raise("dinov2: image_size %d is less than one patch of %d", config.image_size, config.patch_size)
  end
  if config.hidden_size * config.mlp_ratio > 2 ^ 24 then
    A.raise("dinov2: mlp_ratio %g: a feed-forward part of %g is more than any model has", config.mlp_ratio, config.hidden_size * config.mlp_ratio)
  end
  config.pos_interp = config.pos_interp or (config.num_register_tokens > 0 and "antialias" or "size")
  return config
end

---The config that a config.json holds; `overrides` win.
---@param path string
---@param overrides? table
---@return table? config, string? message
function M.read(path, overrides)
  local json = require "weft.io.json"
  local raw, message = json.read(path)
  if raw == nil then return nil, message end
  if type(raw) ~= "table" or json.is_array(raw) then return nil, path .. ": an object of settings is expected" end
  if raw.model_type ~= nil and not tostring(raw.model_type):find "^dinov2" then
    return nil, ("%s: model_type is %s; dinov2 or dinov2_with_registers is expected"):format(path, tostring(raw.model_type))
  end
  local skip = {}
  for _, k in ipairs(ignored) do skip[k] = true end
  local config = {}
  for k, v in pairs(raw) do
    if v ~= json.null and not skip[k] and M.defaults[k] ~= nil then config[k] = v end
  end
  for k, v in pairs(overrides or {}) do config[k] = v end
  return M.complete(config)
end

---The config of weights under the original project's names, by their shapes; nil where they are none.
---Positions are resized as that project does: by `offset`, with registers by `antialias`.
---@param state table<string, weft.Tensor>
---@param overrides? table
---@return table? config
function M.of_original(state, overrides)
  local cls, pos, patch, registers = state.cls_token, state.pos_embed, state["patch_embed.proj.weight"], state.register_tokens
  if not (cls and pos and patch and pos.ndim == 3 and patch.ndim == 4) then return nil end
  local layers = 0
  while state[("blocks.%d.norm1.weight"):format(layers)] do layers = layers + 1 end
  local swiglu, fc1 = state["blocks.0.mlp.w12.weight"] ~= nil, state["blocks.0.mlp.fc1.weight"]
  local width, side = pos:size(3), math.floor(math.sqrt(pos:size(2) - 1) + 0.5)
  local config = {
    hidden_size = width, num_hidden_layers = layers, num_attention_heads = width % 64 == 0 and width / 64 or nil,
    num_channels = patch:size(2), patch_size = patch:size(3), image_size = side * patch:size(3),
    use_swiglu_ffn = swiglu, mlp_ratio = fc1 and fc1:size(1) / width or nil, qkv_bias = state["blocks.0.attn.qkv.bias"] ~= nil,
    num_register_tokens = registers and registers:size(2) or 0, pos_interp = registers and "antialias" or "offset",
    use_mask_token = state.mask_token ~= nil,
  }
  for k, v in pairs(overrides or {}) do config[k] = v end
  if width % 64 ~= 0 and not config.num_attention_heads then
    A.raise("dinov2: a width of %d is no multiple of 64, so that the shapes do not tell num_attention_heads: give it", width)
  end
  return M.complete(config)
end

---Width of the feed-forward part: of both gates for SwiGLU two thirds of it, rounded up to 8.
function M.hidden_features(config)
  local wide = math.floor(config.hidden_size * config.mlp_ratio)
  if not config.use_swiglu_ffn then return wide end
  return math.floor((math.floor(wide * 2 / 3) + 7) / 8) * 8
end

return M
