-- dinov2_keys.lua: names of DINOv2's tensors in the files of others, as a table. Ours are those that
-- Hugging Face writes; newer stacks renamed modules, and the original project has names of its own.
local A = require "weft.args"
local ops = require("weft.ops").functions

local M = {}

---Taken off the front of every name.
M.prefixes = { "dinov2_with_registers.", "dinov2.", "backbone.", "module.", "model." }

---Left out: heads on top of the encoder, and what others derive.
M.ignored = { "^classifier%.", "^head%.", "^linear_head%.", "^dino_head", "^ibot_head" }

---One name to one name: { pattern, replacement }. The first that matches is used.
M.renamed = {
  { "^(.*)%.attention%.q_proj%.(%a+)$", "%1.attention.attention.query.%2" },
  { "^(.*)%.attention%.k_proj%.(%a+)$", "%1.attention.attention.key.%2" },
  { "^(.*)%.attention%.v_proj%.(%a+)$", "%1.attention.attention.value.%2" },
  { "^(.*)%.attention%.o_proj%.(%a+)$", "%1.attention.output.dense.%2" },
  { "^(.*)%.mlp%.down_proj%.(%a+)$", "%1.mlp.weights_out.%2" },
  -- the original project
  { "^cls_token$", "embeddings.cls_token" },
  { "^mask_token$", "embeddings.mask_token" },
  { "^pos_embed$", "embeddings.position_embeddings" },
  { "^register_tokens$", "embeddings.register_tokens" },
  { "^patch_embed%.proj%.(%a+)$", "embeddings.patch_embeddings.projection.%1" },
  { "^norm%.(%a+)$", "layernorm.%1" },
  { "^blocks%.(%d+)%.attn%.proj%.(%a+)$", "encoder.layer.%1.attention.output.dense.%2" },
  { "^blocks%.(%d+)%.ls(%d)%.gamma$", "encoder.layer.%1.layer_scale%2.lambda1" },
  { "^blocks%.(%d+)%.mlp%.w12%.(%a+)$", "encoder.layer.%1.mlp.weights_in.%2" },
  { "^blocks%.(%d+)%.mlp%.w3%.(%a+)$", "encoder.layer.%1.mlp.weights_out.%2" },
  { "^blocks%.(%d+)%.(.*)$", "encoder.layer.%1.%2" },
}

---The other way: ours to the original project's.
M.to_original = {
  { "^embeddings%.position_embeddings$", "pos_embed" },
  { "^embeddings%.patch_embeddings%.projection%.(%a+)$", "patch_embed.proj.%1" },
  { "^embeddings%.(%a+_tokens?)$", "%1" },
  { "^layernorm%.(%a+)$", "norm.%1" },
  { "^encoder%.layer%.(%d+)%.attention%.attention%.%a+%.(%a+)$", "blocks.%1.attn.qkv.%2" },
  { "^encoder%.layer%.(%d+)%.attention%.output%.dense%.(%a+)$", "blocks.%1.attn.proj.%2" },
  { "^encoder%.layer%.(%d+)%.layer_scale(%d)%.lambda1$", "blocks.%1.ls%2.gamma" },
  { "^encoder%.layer%.(%d+)%.mlp%.weights_in%.(%a+)$", "blocks.%1.mlp.w12.%2" },
  { "^encoder%.layer%.(%d+)%.mlp%.weights_out%.(%a+)$", "blocks.%1.mlp.w3.%2" },
  { "^encoder%.layer%.(%d+)%.(.*)$", "blocks.%1.%2" },
}

---One tensor holds several of ours, stacked along its rows.
M.split = {
  { "^blocks%.(%d+)%.attn%.qkv%.(%a+)$", {
    "encoder.layer.%1.attention.attention.query.%2", "encoder.layer.%1.attention.attention.key.%2",
    "encoder.layer.%1.attention.attention.value.%2" } },
}

---Several tensors make one of ours, stacked along its rows, in order of `place`.
M.joined = {
  { "^(.*)%.mlp%.gate_proj%.(%a+)$", "%1.mlp.weights_in.%2", place = 1, of = 2 },
  { "^(.*)%.mlp%.up_proj%.(%a+)$", "%1.mlp.weights_in.%2", place = 2, of = 2 },
}

local function find(rules, name)
  for _, rule in ipairs(rules) do
    if name:find(rule[1]) then return rule end
  end
end

---Our name of a tensor or module, and whether a head on top of the encoder is meant.
---@param name string
---@return string? ours  nil for what is left out
function M.ours(name)
  for _, prefix in ipairs(M.prefixes) do
    if name:sub(1, #prefix) == prefix then name = name:sub(#prefix + 1) end
  end
  for _, pattern in ipairs(M.ignored) do
    if name:find(pattern) then return nil end
  end
  local rule = find(M.renamed, name)
  if rule and not find(M.split, name) then return (name:gsub(rule[1], rule[2])) end
  return name
end

---The name that the original project has for one of our tensors; query, key and value have one name, qkv.
---@param name string
---@return string
function M.original(name)
  for _, rule in ipairs(M.to_original) do
    if name:find(rule[1]) then return (name:gsub(rule[1], rule[2])) end
  end
  return name
end

---Tensors by the original project's names, of ours: query, key and value stacked to qkv again.
---    weft.save("dinov2_vitb14.safetensors", dinov2.keys.to_their_names(model:state_dict()))
---@param state table<string, weft.Tensor>
---@return table<string, weft.Tensor>
function M.to_their_names(state)
  local out, parts = {}, {}
  for name, t in pairs(state) do
    local theirs, place = M.original(name), nil
    for i, word in ipairs { "query", "key", "value" } do
      if name:find("%.attention%.attention%." .. word .. "%.%a+$") then place = i end
    end
    if place then
      parts[theirs] = parts[theirs] or {}
      parts[theirs][place] = t:detach()
    else out[theirs] = t end
  end
  for name, list in pairs(parts) do
    for i = 1, 3 do
      if not list[i] then A.raise("dinov2: %s needs query, key and value", name) end
    end
    out[name] = ops.cat(list, 1)
  end
  return out
end

---Tensors under our names, from those of any of the stacks, and the names of those that were left out.
---Two tensors that mean the same one of ours are an error.
---@param state table<string, weft.Tensor>
---@return table<string, weft.Tensor> ours, string[] left_out
function M.translate(state)
  local out, parts, from, left = {}, {}, {}, {}
  local function put(name, t, source)
    if from[name] then A.raise("dinov2: %s and %s are both %s", from[name], source, name) end
    out[name], from[name] = t, source
  end
  for name, t in pairs(state) do
    local ours = M.ours(name)
    if ours then
      local split, joined = find(M.split, ours), find(M.joined, ours)
      if split and t.ndim > 0 and t:size(1) % #split[2] == 0 then
        local rows = t:size(1) / #split[2]
        for i, to in ipairs(split[2]) do
          put((ours:gsub(split[1], to)), t:narrow(1, (i - 1) * rows + 1, rows), name)
        end
      elseif joined then
        local to = ours:gsub(joined[1], joined[2])
        parts[to] = parts[to] or { of = joined.of }
        parts[to][joined.place] = t
      else
        put(ours, t, name)
      end
    else
      left[#left + 1] = name
    end
  end
  for name, list in pairs(parts) do
    local whole = true
    for i = 1, list.of do whole = whole and list[i] ~= nil end
    if whole then put(name, ops.cat({ unpack(list, 1, list.of) }, 1), "its parts") end
  end
  if out["embeddings.mask_token"] and out["embeddings.mask_token"].ndim == 3 then
    out["embeddings.mask_token"] = out["embeddings.mask_token"]:squeeze(1)
  end
  table.sort(left)
  return out, left
end

return M
