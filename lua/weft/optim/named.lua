-- named.lua: parameters with names, from what users hand over: a module, a table of names, or a list.
local A = require "weft.args"
local is_module = require("weft.nn.module").is_module

local M = {}

---What identifies a tensor: tied parameters are one.
function M.id(t) return tostring(t.p) end

---A list of { name, tensor }: of a module its named parameters, of a map its names in order, of a list
---{ name, tensor } pairs, or tensors, which are called by their place.
---@param params table
---@param where string  what an error calls the caller
---@param prefix? string  put before the places of nameless tensors
---@return { [1]: string, [2]: weft.Tensor }[]
function M.list(params, where, prefix)
  if type(params) ~= "table" then
    A.raise("%s: params: a module, or a table of tensors, is expected, got %s", where, A.typename(params))
  end
  local list = {}
  if is_module(params) then
    for name, t in params:named_parameters() do list[#list + 1] = { name, t } end
    return list
  end
  local names = {}
  for key in pairs(params) do
    if type(key) == "string" then names[#names + 1] = key end
  end
  table.sort(names)
  for _, name in ipairs(names) do list[#list + 1] = { name, params[name] } end
  for i, item in ipairs(params) do
    if A.is_tensor(item) then
      list[#list + 1] = { (prefix or "") .. i, item }
    elseif is_module(item) then
      A.raise("%s: params[%d] is a module; name its parameters through the model, or give the module alone", where, i)
    elseif type(item) == "table" then
      list[#list + 1] = { item[1], item[2] }
    else
      A.raise("%s: params[%d]: a tensor or { name, tensor } is expected, got %s", where, i, A.typename(item))
    end
  end
  for _, entry in ipairs(list) do
    if type(entry[1]) ~= "string" then A.raise("%s: a name is expected, got %s", where, A.typename(entry[1])) end
    A.tensor(entry[2], where, entry[1])
  end
  return list
end

return M
