-- match.lua: which modules an adapter's settings mean, by PEFT's rules.
local A = require "weft.args"
local regex = require "weft.peft.regex"
local dialect = require "weft.peft.dialect"
local config = require "weft.peft.config"
local layers = require "weft.peft.layers"

local M = {}
local ends_with = dialect.ends_with

-- Heads that "all-linear" leaves alone.
M.heads = { lm_head = true, classifier = true, score = true }

---{ path, module } of every Linear, wrapped or not, and of nothing inside a wrapped one; with every = true
---of every module that takes adapters.
function M.linears(model, every)
  local list, inside = {}, nil
  for path, m in model:named_modules() do
    if not (inside and path:sub(1, #inside) == inside) then
      inside = nil
      if layers.is_linear(m) or every and layers.takes(m) then list[#list + 1] = { path, m } end
      if m.is_lora then inside = path .. "."
      elseif m.type == "SavedModule" then inside = path .. "." end
    end
  end
  return list
end

local function listed(list, path)
  for _, name in ipairs(list or {}) do
    if ends_with(path, name) then return name end
  end
end

local function excluded(c, path)
  if type(c.exclude) == "string" then return regex.full(c.exclude, path) end
  if listed(c.exclude, path) then return true end
  -- what is saved whole gets no adapter
  for _, name in ipairs(c.modules_to_save or {}) do
    if ends_with(path, name) or ("." .. path .. "."):find("." .. name .. ".", 1, true) then return true end
  end
end

-- The number in the first ".<name>.<number>." of the path; patterns are regular expressions for the name.
local function layer_of(path, patterns)
  local dotted = "." .. path
  if not patterns then return tonumber((dotted:match "%.[^.]+%.(%d+)%.")) end
  for _, pattern in ipairs(patterns) do
    local from = 1
    while true do
      local at, last, number = dotted:find("%.(%d+)%.", from)
      if not at then break end
      if regex.full("(?:.*\\.)?(?:" .. pattern .. ")", dotted:sub(2, at - 1)) then return tonumber(number) end
      from = last
    end
  end
end

local function in_layers(c, path)
  if not c.layers then return true end
  local n = layer_of(path, c.layers_pattern)
  for _, layer in ipairs(c.layers) do
    if n == layer then return true end
  end
  return false
end

---Whether a path is meant, and by which entry of targets.
---@param c table  settings
---@param path string
function M.target(c, path)
  if excluded(c, path) then return nil end
  if c.targets == "all-linear" then return not M.heads[path:match "[^.]+$"] and "all-linear" or nil end
  if type(c.targets) == "string" then return regex.full(c.targets, path) and c.targets or nil end
  local entry = listed(c.targets, path)
  return entry and in_layers(c, path) and entry or nil
end

local function first_match(patterns, path)
  for _, p in ipairs(patterns) do
    if regex.full("(?:.*\\.)?(?:" .. p[1] .. ")", path) then return p[2] end
  end
end

---Rank, alpha and scaling of a module.
function M.sizes(c, path)
  local rank = first_match(c.rank_pattern, path) or c.rank
  local alpha = first_match(c.alpha_pattern, path) or c.alpha
  return rank, alpha, config.scaling(alpha, rank, c.rslora)
end

---The modules that settings mean: { path, module, rank, alpha, scaling }. An entry of targets that means
---none is an error with the nearest names. `names_of(path)` gives the names that a path answers to.
function M.find(model, c, names_of)
  local found, hit, tails = {}, {}, {}
  for _, item in ipairs(M.linears(model, c.targets ~= "all-linear")) do
    local path = item[1]
    tails[path:match "[^.]+$" or path] = true
    for _, name in ipairs(names_of and names_of(path) or { path }) do
      local entry = path ~= "" and M.target(c, name)
      if entry then
        hit[entry] = true
        local rank, alpha, scaling = M.sizes(c, name)
        found[#found + 1] = { path = path, module = item[2], rank = rank, alpha = alpha, scaling = scaling, entry = entry }
        break
      end
    end
  end
  local known = {}
  for tail in pairs(tails) do known[#known + 1] = tail end
  if type(c.targets) == "table" and not names_of then
    for _, entry in ipairs(c.targets) do
      if not hit[entry] then
        for path, m in model:named_modules() do
          if ends_with(path, entry) and not layers.takes(m) then
            A.raise("peft.lora: targets: %s is a %s; adapters go on Linear, Conv2d and Embedding", path, m.type)
          end
        end
        A.raise("peft.lora: targets: %s matches no Linear, Conv2d or Embedding%s", entry, A.suggest(entry, known))
      end
    end
  elseif #found == 0 then
    A.raise("peft.lora: targets: %s matches no Linear, Conv2d or Embedding; known: %s",
      type(c.targets) == "table" and table.concat(c.targets, ", ") or c.targets, table.concat(known, ", "))
  end
  return found
end

return M
