-- common.lua: what the probes share: names by pattern, tables in text, one pass without side effects.
local A = require "weft.args"

local M = {}

---A pattern as a function of names: * stands for one part between dots, ** for any, ? for one character; without
---them, a piece of the name.
---@param pattern string
function M.matcher(pattern, where)
  if type(pattern) ~= "string" then A.raise("%s: a pattern of names is expected, got %s", where, A.typename(pattern)) end
  if not pattern:find "[*?]" then return function(name) return name:find(pattern, 1, true) ~= nil end end
  local lua = "^" .. pattern:gsub("[%^%$%(%)%%%.%[%]%+%-]", "%%%0"):gsub("%*%*", "\0"):gsub("%*", "[^.]*"):gsub("%z", ".*"):gsub("%?", ".") .. "$"
  return function(name) return name:find(lua) ~= nil end
end

---Refuses anything but a module; a run stands for its model.
function M.model(v, where)
  if type(v) == "table" and getmetatable(v) and rawget(v, "model") and rawget(v, "recipe") then v = v.model end
  if not require("weft.nn.module").is_module(v) then A.raise("%s: a module or a run is expected, got %s", where, A.typename(v)) end
  return v
end

local function widths(head, rows)
  local out = {}
  for i, v in ipairs(head) do out[i] = #v end
  for _, row in ipairs(rows) do
    for i, v in ipairs(row) do out[i] = math.max(out[i] or 0, #v) end
  end
  return out
end

local function sum_of(list)
  local sum = 2 * (#list - 1)
  for _, w in ipairs(list) do sum = sum + w end
  return sum
end

-- A dotted name in at most so many characters: all parts but the last lose letters (enc.lay.0.att.query), then
-- the name its beginning.
local function short_name(name, most)
  for k = 6, 1, -1 do
    if #name <= most then return name end
    local front, last = name:match "^(.*%.)([^.]*)$"
    if front then name = front:gsub("(%a)([%w_]*)", function(a, rest) return a .. rest:sub(1, k - 1) end) .. last end
  end
  return #name <= most and name or ".." .. name:sub(2 - most)
end

-- A table without what a terminal of so many columns has no room for: the columns that are named, in this order,
-- then letters of the names in the first one (12 characters stay).
local function fitted(head, rows, left, spare, columns)
  for _, name in ipairs(spare) do
    if sum_of(widths(head, rows)) <= columns then break end
    for i, v in ipairs(head) do
      if v == name then
        if i <= left then left = left - 1 end
        table.remove(head, i)
        for _, row in ipairs(rows) do table.remove(row, i) end
        break
      end
    end
  end
  local list = widths(head, rows)
  local most = math.max(12, list[1] - (sum_of(list) - columns))
  for _, row in ipairs(rows) do row[1] = short_name(row[1], most) end
  return left
end

---Rows as text: the first `left` columns to the left, the rest to the right. On a terminal no line is longer than
---it is wide.
---@param head string[]  names of the columns
---@param rows string[][]
---@param left? integer  1
---@param spare? string[]  columns that may go on a narrow terminal
function M.text(head, rows, left, spare)
  local terminal = require "weft.terminal"
  left = left or 1
  if terminal.is_terminal() then left = fitted(head, rows, left, spare or {}, terminal.size() - 1) end
  local width, lines = widths(head, rows), {}
  for n = 0, #rows do
    local row = n == 0 and head or rows[n]
    local out = {}
    for i, v in ipairs(row) do
      local pad = (" "):rep(width[i] - #v)
      out[i] = i <= left and v .. pad or pad .. v
    end
    lines[n + 1] = table.concat(out, "  "):gsub("%s+$", "")
  end
  return table.concat(lines, "\n")
end

---The sum of a model's losses, by their weights where a run has them. A function returns its own.
function M.total(model, run, ...)
  local first = (...)
  if type(first) == "function" then return first() end
  if model.losses and type(first) == "table" and not A.is_tensor(first) then
    first.token_share = first.token_share or 1
    local losses = model:losses(first)
    if run then return (run:total(losses)) end
    local weights, total = model.weights, nil
    local names = {}
    for name in pairs(losses) do names[#names + 1] = name end
    table.sort(names)
    for _, name in ipairs(names) do
      local w = weights and require("weft.config").is_section(weights) and require("weft.config").get(weights, name, 1) or 1
      if w ~= 0 then
        local part = losses[name] * w
        total = total and total + part or part
      end
    end
    return total
  end
  return model(...)
end

---Runs fn(...) with the model in evaluation, and draws as if it had not been. Gradients that were there are there again afterwards, and no others.
function M.aside(model, fn, ...)
  local C = require("weft.core").lib
  local random = require "weft.random"
  local training, kept, draws = model.training, {}, random.state()
  for _, t in model:named_parameters() do
    if t.requires_grad then
      local g = t.grad
      kept[#kept + 1] = { t, g and g:keep() or nil }
      t:zero_grad()
    end
  end
  model:eval()
  local function back(ok, ...)
    model:train(training)
    random.load_state(draws)
    for _, pair in ipairs(kept) do A.check(C.weft_set_grad(pair[1].p, pair[2] and pair[2].p or nil)) end
    if not ok then error((...), 0) end
    return ...
  end
  return back(pcall(fn, ...))
end

return M
