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

---Rows as text: the first `left` columns to the left, the rest to the right.
function M.text(head, rows, left)
  local width, lines = {}, {}
  local all = { head, unpack(rows) }
  for _, row in ipairs(all) do
    for i, v in ipairs(row) do width[i] = math.max(width[i] or 0, #v) end
  end
  for n, row in ipairs(all) do
    local out = {}
    for i, v in ipairs(row) do
      local pad = (" "):rep(width[i] - #v)
      out[i] = i <= (left or 1) and v .. pad or pad .. v
    end
    lines[n] = table.concat(out, "  "):gsub("%s+$", "")
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
