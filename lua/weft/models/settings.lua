-- settings.lua: whether the values of a model's settings can be what they say. Files come from anywhere.
local A = require "weft.args"

local M = {}

-- Far beyond any model, and small enough that nothing overflows.
local most = { size = 2 ^ 24, layers = 10000 }

local kinds = {
  size = function(v) return type(v) == "number" and v % 1 == 0 and v >= 1 and v <= most.size, "a whole number from 1 to 16777216" end,
  layers = function(v) return type(v) == "number" and v % 1 == 0 and v >= 1 and v <= most.layers, "a whole number from 1 to 10000" end,
  count = function(v) return type(v) == "number" and v % 1 == 0 and v >= 0 and v <= most.layers, "a whole number from 0 to 10000" end,
  positive = function(v) return type(v) == "number" and v > 0 and v < 1e30, "a number above 0" end,
  from_zero = function(v) return type(v) == "number" and v >= 0 and v < 1e30, "a number from 0" end,
  rate = function(v) return type(v) == "number" and v >= 0 and v < 1, "a number in [0, 1)" end,
  number = function(v) return type(v) == "number" and v == v and math.abs(v) < 1e30, "a number" end,
  boolean = function(v) return type(v) == "boolean", "true or false" end,
  text = function(v) return type(v) == "string", "a text" end,
}

---Raises for the first value, by name, that is not of its kind. What is nil is not looked at.
---@param where string
---@param config table
---@param rules table<string, string>  size, layers, count, positive, from_zero, rate, number, boolean, text
function M.check(where, config, rules)
  local keys = {}
  for key in pairs(rules) do keys[#keys + 1] = key end
  table.sort(keys)
  for _, key in ipairs(keys) do
    local v = config[key]
    if v ~= nil then
      local ok, expected = kinds[rules[key]](v)
      if not ok then A.raise("%s: %s: %s is expected, got %s", where, key, expected, A.typename(v)) end
    end
  end
end

return M
