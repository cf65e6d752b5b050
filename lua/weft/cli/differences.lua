-- differences.lua: what two files or directories of tensors do not have in common: names, shapes, dtypes,
-- values, and the settings beside them. The part of `weft inspect A B` that compares.
local M = {}

local json_files = { "config.json", "adapter_config.json", "preprocessor_config.json" }

local function text_of(v)
  return v == nil and "nothing" or require("weft.io.json").encode(v)
end

local function sorted(t)
  local list = {}
  for k in pairs(t) do list[#list + 1] = k end
  table.sort(list)
  return list
end

local function shape_of(t) return ("%s [%s]"):format(t.dtype, table.concat(t.shape, ",")) end

-- Tensors of all of a path's files by name.
local function tensors_of(files)
  require "weft"
  local all = {}
  for _, path in ipairs(files) do
    local tensors, message = require("weft.io.safetensors").load(path)
    if not tensors then error(message, 0) end
    for name, t in pairs(tensors) do all[name] = t end
  end
  return all
end

-- Largest difference of two tensors of one shape, or nil where all values are equal; NaN equals NaN.
local function distance(a, b)
  local weft = require "weft"
  return weft.scope(function()
    return weft.no_grad(function()
      if a:numel() == 0 then return nil end
      local x, y = a:to "float64", b:to "float64"
      local same = x:eq(y):logical_or(x:ne(x):logical_and(y:ne(y)))
      if same:to("int32"):min():item() == 1 then return nil end
      local d = (x - y):abs():masked_fill(same, 0)
      return d:max():item()
    end)
  end)
end

-- Lines for names that one side lacks.
local function only(out, label, names)
  for i, name in ipairs(names) do
    if i > 12 then
      out(("  only in %s: ... and %d more\n"):format(label, #names - 12))
      break
    end
    out(("  only in %s: %s\n"):format(label, name))
  end
end

local function settings(out, a, b)
  local json, n = require "weft.io.json", 0
  for _, name in ipairs(json_files) do
    local x, y = json.read(a .. "/" .. name), json.read(b .. "/" .. name)
    if type(x) == "table" and type(y) == "table" then
      local keys = {}
      for k in pairs(x) do keys[k] = true end
      for k in pairs(y) do keys[k] = true end
      for _, key in ipairs(sorted(keys)) do
        local v, w = text_of(x[key]), text_of(y[key])
        if v ~= w then
          n = n + 1
          out(("  %s: %s: %s and %s\n"):format(name, key, v, w))
        end
      end
    end
  end
  return n
end

---Writes the differences and returns how many there are.
---@param a { path: string, files: string[] }
---@param b { path: string, files: string[] }
---@param out function
---@return integer
function M.show(a, b, out)
  local x, y = tensors_of(a.files), tensors_of(b.files)
  local left, right, shapes, values, same = {}, {}, {}, {}, 0
  for _, name in ipairs(sorted(x)) do
    if not y[name] then left[#left + 1] = name
    elseif shape_of(x[name]) ~= shape_of(y[name]) and table.concat(x[name].shape, ",") ~= table.concat(y[name].shape, ",") then
      shapes[#shapes + 1] = ("%s: %s and %s"):format(name, shape_of(x[name]), shape_of(y[name]))
    else
      local d = distance(x[name], y[name])
      if x[name].dtype ~= y[name].dtype then
        shapes[#shapes + 1] = ("%s: %s and %s"):format(name, shape_of(x[name]), shape_of(y[name]))
      end
      if d then values[#values + 1] = { name, d } else same = same + 1 end
    end
  end
  for _, name in ipairs(sorted(y)) do
    if not x[name] then right[#right + 1] = name end
  end
  out(("%s\n%s\n"):format(a.path, b.path))
  local n = settings(out, a.path, b.path)
  only(out, "the first", left)
  only(out, "the second", right)
  for _, line in ipairs(shapes) do out("  " .. line .. "\n") end
  table.sort(values, function(p, q)
    -- NaN on one side only comes first
    local nan_p, nan_q = p[2] ~= p[2], q[2] ~= q[2]
    if nan_p ~= nan_q then return nan_p end
    return not nan_p and p[2] > q[2] or (nan_p or p[2] == q[2]) and p[1] < q[1]
  end)
  for i, v in ipairs(values) do
    if i > 20 then
      out(("  ... and %d more tensors with other values\n"):format(#values - 20))
      break
    end
    out(v[2] ~= v[2] and ("  %s: NaN on one side only\n"):format(v[1])
      or ("  %s: values differ by up to %.4g\n"):format(v[1], v[2]))
  end
  n = n + #left + #right + #shapes + #values
  out(("  %d tensors are equal, %s\n"):format(same, n == 0 and "and nothing differs" or n .. " differences"))
  return n
end

return M
