-- groups.lua: parameter groups of LoRA+ (Hayou et al. 2024, arXiv 2402.12354): B learns faster than A.
local A = require "weft.args"
local is_module = require("weft.nn.module").is_module
local named = require "weft.optim.named"

local M = {}

---Trainable parameters in the groups that PEFT's LoRA+ makes, for an optimizer: A (and all other matrices)
---at lr; B, and vectors, at lr times ratio; trained tables of embeddings at a rate of their own. Biases and
---norms never decay. Groups without a parameter are left out.
---    local optimizer = weft.optim.AdamW(peft.groups(model, { lr = 1e-4, ratio = 16 }))
---@param params table  a module, or what an optimizer takes as one group
---@param options table  lr, ratio (16), embedding_lr (1e-6), weight_decay (0)
---@return table[] groups  { name, lr, weight_decay, params = { { name, tensor } } }
function M.groups(params, options)
  local o = A.options(options, { lr = A.required, ratio = 16, embedding_lr = 1e-6, weight_decay = 0 }, "peft.groups")
  for _, key in ipairs { "lr", "ratio", "embedding_lr", "weight_decay" } do
    if type(o[key]) ~= "number" or not (o[key] >= 0) then
      A.raise("peft.groups: %s: a number from 0 is expected, got %s", key, tostring(o[key]))
    end
  end
  local tables, norms = {}, {}
  if is_module(params) then
    for path, m in params:named_modules() do
      local name = path == "" and "weight" or path .. ".weight"
      if m.type == "Embedding" then tables[name] = true end
      if m.type:find "Norm" then norms[name] = true end
    end
  end
  local groups = {
    { name = "lora_A", lr = o.lr, weight_decay = o.weight_decay, params = {} },
    { name = "embedding", lr = o.embedding_lr, weight_decay = o.weight_decay, params = {} },
    { name = "lora_B", lr = o.lr * o.ratio, weight_decay = o.weight_decay, params = {} },
    { name = "lora_B.no_decay", lr = o.lr * o.ratio, weight_decay = 0, params = {} },
  }
  for _, entry in ipairs(named.list(params, "peft.groups")) do
    local name, t = entry[1], entry[2]
    if t.requires_grad then
      local place = 1
      if tables[name] then place = 2
      elseif name:find("lora_B", 1, true) or t.ndim == 1 then
        place = (name:find "bias$" or norms[name]) and 4 or 3
      end
      table.insert(groups[place].params, entry)
    end
  end
  local filled = {}
  for _, group in ipairs(groups) do
    if #group.params > 0 then filled[#filled + 1] = group end
  end
  if #filled == 0 then A.raise("peft.groups: nothing trains") end
  return filled
end

return M
