-- scores.lua: held-out scores on a report's page. What was scored in another way stands in another table: no
-- column holds figures of two protocols.
local axes = require "weft.report.axis"
local markup = require "weft.report.markup"
local protocols = require "weft.eval.protocol"

local M = {}

local el = markup.el

local function percent(v) return type(v) == "number" and ("%.1f %%"):format(100 * v) or "–" end

local function sorted(t)
  local keys = {}
  for k in pairs(t) do keys[#keys + 1] = k end
  table.sort(keys)
  return keys
end

---When an evaluation was made, in words.
function M.label(e) return e.label == "before" and "before training" or "after " .. tostring(e.label) end

---The last evaluation of a run that has scores, or nil.
function M.last(run)
  for i = #run.evaluations, 1, -1 do
    local v = run.evaluations[i].values
    if v and (v.retrieval or v.itm) then return run.evaluations[i] end
  end
end

---Mean recall by chance, of a retrieval's figures.
function M.chance(r) return ((r.chance1 or 0) + (r.chance5 or 0) + (r.chance10 or 0)) / 3 end

-- What an evaluation is of: a key that those that can be compared share, and a line.
local function protocol_of(e)
  if e.protocol then return protocols.key(e.protocol), protocols.line(e.protocol) end
  local r = e.values.retrieval or {}
  return "of " .. tostring(r.pictures), ("%s held-out pictures; what else was agreed on is not recorded"):format(r.pictures or "unknown")
end

---Evaluations by what they are of, in the order they come: { { key, line, rows = { { run, e } } } }.
---@param pairs_ table[]  { run, evaluation }
function M.groups(pairs_)
  local by, out = {}, {}
  for _, pair in ipairs(pairs_) do
    local key, line = protocol_of(pair[2])
    if not by[key] then
      by[key] = { key = key, line = line, rows = {} }
      out[#out + 1] = by[key]
    end
    table.insert(by[key].rows, pair)
  end
  return out
end

local function scored(line) return el("p", { class = "soft" }, "Scored: " .. line .. ".") end

local function apart(n)
  return n > 1 and el("p", nil,
    ("These runs were scored in %d ways, on other pictures or otherwise prepared: only figures of one table can be compared."):format(n)) or nil
end

---The table at the top of a page of several runs; row(run) gives name, last loss, parameters trained, status.
function M.lead(runs, row)
  local all, rest = {}, {}
  for _, run in ipairs(runs) do
    local e = M.last(run)
    if e then all[#all + 1] = { run, e } else rest[#rest + 1] = row(run) end
  end
  local groups, out = M.groups(all), {}
  out[1] = apart(#groups)
  for _, g in ipairs(groups) do
    local rows, chance, majority = {}, nil, nil
    for i, pair in ipairs(g.rows) do
      local r, m, first = pair[2].values.retrieval or {}, pair[2].values.itm or {}, row(pair[1])
      rows[i] = { first[1], first[2], percent(r.r_mean), percent(r.tr1), percent(r.ir1), percent(m.itm_acc), first[3], first[4] }
      chance, majority = r.chance1 and r or chance, m.majority or majority
    end
    if chance then
      rows[#rows + 1] = { "chance; always no", "", percent(M.chance(chance)), percent(chance.chance1),
        percent(chance.ir_chance1 or chance.chance1), percent(majority), "", "", class = "chance" }
    end
    out[#out + 1] = { markup.table({ "run", "last loss", "mean recall", "picture → text R@1", "text → picture R@1", "matching",
      "parameters trained", "" }, rows, { left = { true, [8] = true } }), scored(g.line) }
  end
  if #rest > 0 then out[#out + 1] = markup.table({ "run", "last loss", "parameters trained", "" }, rest, { left = { true, [4] = true } }) end
  return out
end

-- --- tables of a group: rows are { run, evaluation }, named by their run where there are several
local RECALL = { { "picture → text R@1", "tr1" }, { "R@5", "tr5" }, { "R@10", "tr10" }, { "text → picture R@1", "ir1" }, { "R@5", "ir5" },
  { "R@10", "ir10" }, { "mean", "r_mean" } }

local function named(several, run, e) return several and { run.name, M.label(e) } or { M.label(e) } end

-- Recalls under a name among the values, of one number of candidates that were put in order (`top`).
local function recall_table(rows, several, name, top)
  local head, out, chance = several and { "run", "" } or { "" }, {}, nil
  for _, c in ipairs(RECALL) do head[#head + 1] = c[1] end
  for _, pair in ipairs(rows) do
    local r = pair[2].values[name]
    if type(r) == "table" and r.tr1 and r.top == top then
      local row = named(several, pair[1], pair[2])
      for _, c in ipairs(RECALL) do row[#row + 1] = percent(r[c[2]]) end
      out[#out + 1], chance = row, r
    end
  end
  if #out == 0 then return nil end
  local last = several and { "chance", "" } or { "chance" }
  for _, c in ipairs(RECALL) do
    local k = c[2]:match "%d+"
    last[#last + 1] = k and percent(c[2]:find "^ir" and chance["ir_chance" .. k] or chance["chance" .. k]) or percent(M.chance(chance))
  end
  last.class = "chance"
  out[#out + 1] = last
  return markup.table(head, out, { left = { true, several } })
end

local function recalls(rows, several)
  local out = { { el("h3", nil, "Finding pictures by captions and captions by pictures"), recall_table(rows, several, "retrieval") } }
  if #out[1] == 1 then out = {} end
  local tops = {}
  for _, pair in ipairs(rows) do
    local r = pair[2].values.reranked
    if type(r) == "table" and r.top then tops[r.top] = true end
  end
  for _, top in ipairs(sorted(tops)) do
    out[#out + 1] = { el("h3", nil, ("The same in two stages: %s"):format(protocols.reranked { top = top })),
      recall_table(rows, several, "reranked", top) }
  end
  return out
end

local function matching(rows, several)
  local out = {}
  local head = several and { "run", "" } or { "" }
  for _, h in ipairs { "all", "pairs", "random", "hard", "always no" } do head[#head + 1] = h end
  for _, pair in ipairs(rows) do
    local m = pair[2].values.itm
    if m and m.itm_acc then
      local row = named(several, pair[1], pair[2])
      for _, k in ipairs { "itm_acc", "pair_acc", "random_acc", "hard_acc", "majority" } do row[#row + 1] = percent(m[k]) end
      out[#out + 1] = row
    end
  end
  if #out == 0 then return nil end
  return { el("h3", nil, "Telling pairs from others"), markup.table(head, out, { left = { true, several } }),
    el("p", { class = "soft" }, "Each held-out picture with its own caption, a random other one, and the other one that looks most alike.") }
end

local TABLED = { retrieval = true, reranked = true, itm = true }

-- Every other figure of the evaluations: whatever a recipe adds.
local function others(rows, several)
  local out, by, head, labels = {}, {}, { "" }, {}
  for _, pair in ipairs(rows) do
    local run, e = pair[1], pair[2]
    local when = M.label(e)
    if not labels[when] then
      labels[when] = true
      head[#head + 1] = when
    end
    for _, name in ipairs(sorted(e.values)) do
      for _, k in ipairs(not TABLED[name] and type(e.values[name]) == "table" and sorted(e.values[name]) or {}) do
        local v = e.values[name][k]
        if type(v) == "number" then
          local title = (several and run.name .. ": " or "") .. name .. " " .. k
          if not by[title] then
            by[title] = { title }
            out[#out + 1] = by[title]
          end
          by[title][when] = axes.short(v)
        end
      end
    end
  end
  if #out == 0 then return nil end
  for _, row in ipairs(out) do
    for i = 2, #head do row[i] = row[head[i]] or "–" end
  end
  return { el("h3", nil, "Other figures"), markup.table(head, out) }
end

---The page's section of scores.
function M.section(runs)
  local all, several = {}, #runs > 1
  for _, run in ipairs(runs) do
    for _, e in ipairs(run.evaluations) do
      if e.values and next(e.values) then all[#all + 1] = { run, e } end
    end
  end
  local groups = M.groups(all)
  local out = { apart(#groups) }
  for _, g in ipairs(groups) do
    out[#out + 1] = { scored(g.line), recalls(g.rows, several), matching(g.rows, several), others(g.rows, several) }
  end
  return out
end

return M
