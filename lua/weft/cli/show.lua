-- show.lua: a value as the prompt prints it.
local M = {}

local MAX_ENTRIES, MAX_DEPTH = 20, 3  -- unless all is asked for

local function sorted_keys(t)
  local keys = {}
  for k in pairs(t) do keys[#keys + 1] = k end
  table.sort(keys, function(a, b)
    local ta, tb = type(a), type(b)
    if ta == tb and (ta == "number" or ta == "string") then return a < b end
    if ta ~= tb then return ta < tb end
    return tostring(a) < tostring(b)
  end)
  return keys
end

local render

local function entries(t, depth, seen)
  local parts, listed = {}, {}
  for i, v in ipairs(t) do
    if i > MAX_ENTRIES then break end
    listed[i] = true
    parts[i] = render(v, depth + 1, seen)
  end
  local left = 0
  for _, k in ipairs(sorted_keys(t)) do
    if not listed[k] then
      if #parts >= MAX_ENTRIES then
        left = left + 1
      else
        local name = type(k) == "string" and k:match "^[%a_][%w_]*$" or ("[%s]"):format(
          type(k) == "string" and ("%q"):format(k) or tostring(k))
        parts[#parts + 1] = name .. " = " .. render(t[k], depth + 1, seen)
      end
    end
  end
  if left > 0 then parts[#parts + 1] = ("... %d more (all(_) shows them)"):format(left) end
  return parts
end

local function render_table(t, depth, seen)
  if seen[t] then return "{ (itself) }" end
  if depth > MAX_DEPTH then return "{ ... }" end
  seen[t] = true
  local parts = entries(t, depth, seen)
  seen[t] = nil
  if #parts == 0 then return "{}" end
  local flat = "{ " .. table.concat(parts, ", ") .. " }"
  if #flat <= 80 and not flat:find "\n" then return flat end
  local indent = ("  "):rep(depth)
  return ("{\n%s%s\n%s}"):format(indent, table.concat(parts, ",\n" .. indent), ("  "):rep(depth - 1))
end

function render(v, depth, seen)
  if type(v) == "string" then
    if depth == 1 and #v > 0 and not v:find "^%s*$" then return v end
    return (("%q"):format(v):gsub("\\\n", "\\n"))
  end
  if type(v) == "table" then
    local mt = getmetatable(v)
    if type(mt) == "table" and rawget(mt, "__tostring") then return tostring(v) end
    return render_table(v, depth, seen)
  end
  if type(v) == "cdata" and depth > 1 then return (tostring(v):gsub("\n.*", "")) end
  return tostring(v)
end

---Text of a value: tensors and modules by their own tostring, tables by their entries, bounded.
---@param v any
---@return string
function M.value(v) return render(v, 1, {}) end

---The same without bounds: every entry, to any depth.
---@param v any
---@return string
function M.all(v)
  local entries_, depth_ = MAX_ENTRIES, MAX_DEPTH
  MAX_ENTRIES, MAX_DEPTH = math.huge, math.huge
  local ok, text = pcall(render, v, 1, {})
  MAX_ENTRIES, MAX_DEPTH = entries_, depth_
  if not ok then error(text, 0) end
  return text
end

return M
