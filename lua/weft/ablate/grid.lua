-- grid.lua: which values a plan gives to which keys: from the command line's words or Lua tables to a
-- list of points, each a list of { key, text }.
local A = require "weft.args"

local M = {}

---A value as the command line would write it.
function M.text(v)
  if type(v) == "number" then return ("%.14g"):format(v) end
  if type(v) ~= "table" then return tostring(v) end
  local items = {}
  for i, item in ipairs(v) do items[i] = M.text(item) end
  return "[" .. table.concat(items, ",") .. "]"
end

-- Commas outside of brackets.
local function split(text)
  local out, depth, from = {}, 0, 1
  for i = 1, #text do
    local c = text:sub(i, i)
    if c == "[" then depth = depth + 1 elseif c == "]" then depth = depth - 1 end
    if c == "," and depth == 0 then
      out[#out + 1] = text:sub(from, i - 1)
      from = i + 1
    end
  end
  out[#out + 1] = text:sub(from)
  return out
end

-- 1..3 and 0.1..0.5..0.2 count up; anything else is itself.
local function range(text)
  local a, rest = text:match "^(%-?[%d.]-%d)%.%.(.+)$"
  if not a then return { text } end
  local b, step = rest:match "^(.-%d)%.%.(.+)$"
  local from, to, by = tonumber(a), tonumber(b or rest), tonumber(step or "1")
  if not from or not to or not by or by == 0 or (to - from) / by < 0 then
    A.raise("ablate: a range such as 1..3 or 0.1..0.5..0.2 is expected, got %q", text)
  end
  local out = {}
  for i = 0, math.floor((to - from) / by + 1e-9) do out[#out + 1] = M.text(from + i * by) end
  return out
end

-- 4~64, log:0.1~10 and ~a,b,c are drawn: what random_axis takes. Whole numbers where both ends are.
local function drawn(text)
  local choices = text:match "^~(.+)$"
  if choices then return { choices = split(choices) } end
  local log, low, high = text:match "^(l?o?g?:?)(%-?[%d.][%d.eE+-]*)~(%-?[%d.][%d.eE+-]*)$"
  local from, to = tonumber(low), tonumber(high)
  if not from or not to or log ~= "" and log ~= "log:" then return nil end
  return { from, to, log = log ~= "" or nil, whole = not (low .. high):find "[.eE]" or nil }
end

-- A value or a condition of the command line: a Lua expression over the config's keys.
local function expression(text, what)
  local chunk = loadstring("return " .. text, "=" .. what)
  if not chunk then A.raise("ablate: %s: a Lua expression such as 2 * lora.rank is expected, got %q", what, text) end
  return function(config)
    local names = setmetatable({}, { __index = function(_, name)
      if config[name] == nil and math[name] == nil then error(name .. " is no key of the config", 0) end
      return config[name] == nil and math[name] or config[name]
    end })
    local ok, value = pcall(setfenv(chunk, names))
    if not ok then A.raise("ablate: %s: %s", what, (tostring(value):gsub("^.-:%d+: ", ""))) end
    return value
  end
end

---A condition such as lora.rank <= lora.alpha as a function of a cell's values.
function M.condition(text) return expression(text, "--where") end

---Words such as lora.rank=4,8 (swept), seed=1..3 (a range), lora.rank+lora.alpha=4+8,8+16 (side by side),
---lora.alpha:=2*lora.rank (computed), lora_lr=log:0.1~10 or lora.targets=~[query],[query,value] (drawn)
---and lr=0.1 (fixed).
---@param words string[]
---@return table axes  lists of alternatives, each a list of { key, text }
---@return string[] fixed
---@return table computed  { key, function } pairs
---@return table draw  key -> what random_axis takes
function M.parse(words)
  local axes, fixed, computed, draw = {}, {}, {}, {}
  for _, word in ipairs(words) do
    local left, how, right = word:match "^([%w_.+]+)(:?=)(.*)$"
    if not left then A.raise("ablate: key.sub=value,value is expected, got %q", word) end
    local random = how == "=" and drawn(right)
    if how == ":=" then computed[#computed + 1] = { left, expression(right, left) }
    elseif random then draw[left] = random
    else
      local keys, axis = {}, {}
      for key in left:gmatch "[^+]+" do keys[#keys + 1] = key end
      for _, item in ipairs(split(right)) do
        local texts = #keys == 1 and range(item) or { item }
        for _, text in ipairs(texts) do
          local point = {}
          if #keys == 1 then point[1] = { keys[1], text } else
            for value in text:gmatch "[^+]+" do point[#point + 1] = { keys[#point + 1], value } end
            if #point ~= #keys then A.raise("ablate: %s: %d values joined by + are expected, got %q", left, #keys, text) end
          end
          axis[#axis + 1] = point
        end
      end
      if #axis == 1 and #keys == 1 then fixed[#fixed + 1] = word else axes[#axes + 1] = axis end
    end
  end
  return axes, fixed, computed, draw
end

local function sorted(t)
  local keys = {}
  for k in pairs(t) do keys[#keys + 1] = k end
  table.sort(keys)
  return keys
end

---Axes of tables: grid = { key = { values }, "1..3" or function }, zip = { { key = { values }, key = { values } } }.
---@return table axes, table computed  { key, function } pairs
function M.of_tables(grid, zip)
  local axes, computed = {}, {}
  for _, key in ipairs(sorted(grid)) do
    local values = grid[key]
    if type(values) == "function" then computed[#computed + 1] = { key, values } else
      if type(values) == "string" then values = range(values) end
      if type(values) ~= "table" or #values == 0 then
        A.raise("ablate: grid: %s: a list of values, a range such as \"1..3\" or a function is expected", key)
      end
      local axis = {}
      for i, v in ipairs(values) do axis[i] = { { key, M.text(v) } } end
      axes[#axes + 1] = axis
    end
  end
  for _, group in ipairs(zip) do
    local keys, axis = sorted(group), {}
    for _, key in ipairs(keys) do
      if type(group[key]) == "string" then group[key] = range(group[key]) end
      if type(group[key]) ~= "table" or #group[key] == 0 then A.raise("ablate: zip: %s: a list of values is expected", tostring(key)) end
    end
    if #keys == 0 then A.raise "ablate: zip: a list of tables is expected, each with lists of values by key" end
    for i = 1, #group[keys[1]] do
      axis[i] = {}
      for j, key in ipairs(keys) do
        if #group[key] ~= #group[keys[1]] then
          A.raise("ablate: zip: %s has %d values and %s has %d", keys[1], #group[keys[1]], key, #group[key])
        end
        axis[i][j] = { key, M.text(group[key][i]) }
      end
    end
    axes[#axes + 1] = axis
  end
  return axes, computed
end

-- A draw as it was meant, or an error.
local function checked(d, key)
  if type(d) ~= "table" then A.raise("ablate: random: draw: %s: { low, high } or { choices = { ... } } is expected", key) end
  for k in pairs(d) do
    if not ({ [1] = true, [2] = true, log = true, whole = true, choices = true })[k] then
      A.raise("ablate: random: draw: %s: unknown key %s%s", key, tostring(k), A.suggest(tostring(k), { "log", "whole", "choices" }))
    end
  end
  if d.choices then
    if type(d.choices) ~= "table" or #d.choices == 0 then A.raise("ablate: random: draw: %s: choices: a list is expected", key) end
  elseif type(d[1]) ~= "number" or type(d[2]) ~= "number" or d[1] > d[2] then
    A.raise("ablate: random: draw: %s: two numbers are expected, the lower one first", key)
  elseif d.log and d[1] <= 0 then A.raise("ablate: random: draw: %s: log wants numbers above 0, got %s", key, tostring(d[1])) end
  return d
end

---An axis of random draws: { n =, seed =, draw = { key = { low, high, log = true, whole = true } or { choices = { ... } } } }.
---A draw is keyed by seed, key and number alone.
function M.random_axis(o)
  o = A.options(o, { n = A.required, seed = 0, draw = A.required }, "ablate: random")
  if type(o.n) ~= "number" or o.n < 1 or o.n % 1 ~= 0 then A.raise("ablate: random: n: a whole number from 1 is expected, got %s", tostring(o.n)) end
  local hash, axis = require("weft.random").hash, {}
  for i = 1, o.n do
    axis[i] = {}
    for _, key in ipairs(sorted(o.draw)) do
      local d = checked(o.draw[key], key)
      local u = tonumber(bit.rshift(hash(("ablate/%s/%d"):format(key, i), o.seed) * 0x9E3779B97F4A7C15ULL, 11)) / 2 ^ 53
      local v
      if d.choices then v = d.choices[math.floor(u * #d.choices) + 1]
      elseif d.log then v = d[1] * (d[2] / d[1]) ^ u
      else v = d[1] + (d[2] - d[1]) * u end
      if d.whole then v = math.floor(v + 0.5) elseif not d.choices then v = tonumber(("%.4g"):format(v)) end
      table.insert(axis[i], { key, M.text(v) })
    end
  end
  return axis
end

-- A key in two axes would take its last value for both.
local function once(axes)
  local seen = {}
  for _, axis in ipairs(axes) do
    for _, pair in ipairs(axis[1]) do
      if seen[pair[1]] then A.raise("ablate: %s is swept twice", pair[1]) end
      seen[pair[1]] = true
    end
  end
end

---All combinations of the axes, the last one fastest; an axis of seeds is moved to the end.
function M.points(axes)
  local order = {}
  for _, axis in ipairs(axes) do
    if #axis[1] > 1 or axis[1][1][1] ~= "seed" then order[#order + 1] = axis end
  end
  for _, axis in ipairs(axes) do
    if #axis[1] == 1 and axis[1][1][1] == "seed" then order[#order + 1] = axis end
  end
  once(axes)
  local points = { {} }
  for _, axis in ipairs(order) do
    local more = {}
    for _, point in ipairs(points) do
      for _, choice in ipairs(axis) do
        local longer = { unpack(point) }
        for _, pair in ipairs(choice) do longer[#longer + 1] = pair end
        more[#more + 1] = longer
      end
    end
    points = more
  end
  return points
end

return M
