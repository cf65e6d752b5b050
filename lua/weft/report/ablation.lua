-- ablation.lua: an ablation as one page: heat map, scores, curves over each other, captions of the best
-- and the worst. What was found is ablate/results.lua's; the frame of the page html.lua's.
local chart = require "weft.report.chart"
local files = require "weft.files"
local html = require "weft.report.html"
local markup = require "weft.report.markup"
local runs_of = require "weft.report.runs"
local tables = require "weft.ablate.table"

local M = {}

local el = markup.el
local MOST_LINES, MOST_MAPS = 8, 6

local function commas(n) return n and (require("weft.nn.module").commas(n)) or "–" end
local function number(v) return v and ("%.4g"):format(v) or "–" end

local swept, name_of = tables.keys, tables.name

-- Cells of a setting, those that are done first.
local function cells_of(found, setting)
  local out = {}
  for _, c in ipairs(found.cells) do
    local same = true
    for _, key in ipairs(swept(found.plan)) do same = same and c.values[key] == setting.values[key] end
    if same then table.insert(out, c.state == "done" and 1 or #out + 1, c) end
  end
  return out
end

-- --- the table of settings
local function note(s)
  local parts = {}
  for _, state in ipairs { "failed", "running", "stopped", "waiting" } do
    if s[state] then parts[#parts + 1] = ("%d %s"):format(s[state], state) end
  end
  if s.pruned_why then parts[#parts + 1] = s.pruned_why end
  return table.concat(parts, "; ")
end

-- What the scores were made of. Each seed may hold out pictures of its own; settings that were scored otherwise
-- than others of their seed can't be compared with them, and are named.
local function protocols(found, runs)
  local scores, all = require "weft.report.scores", {}
  for _, s in ipairs(found.settings) do
    for _, run in ipairs(runs[s]) do
      local e = scores.last(run)
      if e then all[#all + 1] = { run, e } end
    end
  end
  local groups, of_seed, mixed, out = scores.groups(all), {}, false, {}
  for i, g in ipairs(groups) do
    local seeds, seen, names = {}, {}, {}
    for k, pair in ipairs(g.rows) do
      local seed = tostring(pair[1].config.seed)
      mixed = mixed or of_seed[seed] and of_seed[seed] ~= g
      of_seed[seed], names[k] = g, pair[1].name
      if not seen[seed] then seen[seed], seeds[#seeds + 1] = true, seed end
    end
    g.seeds, g.names = table.concat(seeds, ", "), table.concat(names, ", ")
    out[i] = g
  end
  for i, g in ipairs(groups) do
    local whose = #groups > 1 and (mixed and (" (%s)"):format(g.names) or (" (seed %s)"):format(g.seeds)) or ""
    out[i] = el("p", { class = "soft" }, ("Scored%s: %s."):format(whose, g.line))
  end
  if mixed then
    table.insert(out, 1, el("p", nil, ("These cells were scored in %d ways, and not by their seed alone: figures of one way alone can be compared.")
      :format(#groups)))
  end
  return out
end

local function settings_table(found, runs)
  local plan, rows, keys = found.plan, {}, swept(found.plan)
  local head = {}
  for i, key in ipairs(keys) do head[i] = plan.labels[key] end
  if #keys == 0 then head[1] = "" end
  local scaled = tables.has_scale(plan)
  if scaled then head[#head + 1] = "effective scale" end
  for _, h in ipairs { plan.metric, "spread over seeds", "runs", "parameters trained", "seconds", "" } do head[#head + 1] = h end
  for i, s in ipairs(found.settings) do
    local row = { class = s.best and "best" or nil }
    for _, key in ipairs(keys) do row[#row + 1] = s.values[key] end
    if #keys == 0 then row[1] = "all" end
    if scaled then row[#row + 1] = s.scale and "×" .. s.scale or "–" end
    for _, v in ipairs { number(s.mean), number(s.spread), ("%d/%d"):format(s.n, s.cells), commas(s.trainable),
      s.seconds and ("%.0f"):format(s.seconds) or "–", note(s) } do row[#row + 1] = v end
    rows[i] = row
  end
  local lines = {}
  for i, v in ipairs(found.verdict) do lines[i] = el("p", nil, v) end
  for _, v in ipairs(found.flags) do lines[#lines + 1] = el("p", nil, "note: " .. v) end
  return { markup.table(head, rows, { left = { [#head] = true } }), protocols(found, runs), lines }
end

-- --- the heat map
local function sorted_values(list)
  local seen, out = {}, {}
  for _, v in ipairs(list) do
    if not seen[v] then
      seen[v] = true
      out[#out + 1] = v
    end
  end
  table.sort(out, function(a, b)
    local x, y = tonumber(a), tonumber(b)
    if x and y then return x < y end
    return tostring(a) < tostring(b)
  end)
  return out
end

-- Rank goes down, alpha across, where they are swept; else the first two keys.
local function sides(keys)
  local order = { unpack(keys) }
  local function first(pattern, place)
    for i, key in ipairs(order) do
      if key:find(pattern) then
        table.insert(order, place, table.remove(order, i))
        return
      end
    end
  end
  first("alpha$", 1)
  first("rank$", 1)
  return order[1], order[2], { unpack(order, 3) }
end

-- Mean spread over seeds: differences below it tell little, and their colours should too.
local function spread_of(settings)
  local sum, n = 0, 0
  for _, s in ipairs(settings) do
    if s.spread then sum, n = sum + s.spread, n + 1 end
  end
  return n > 0 and 2 * sum / n or 0
end

local function maps(found)
  local plan = found.plan
  local down, across, rest = sides(swept(plan))
  if not across then return nil end
  local groups, order = {}, {}
  for _, s in ipairs(found.settings) do
    local parts = {}
    for i, key in ipairs(rest) do parts[i] = plan.labels[key] .. " " .. s.values[key] end
    local id = table.concat(parts, ", ")
    if not groups[id] then
      groups[id] = {}
      order[#order + 1] = id
    end
    table.insert(groups[id], s)
  end
  local out = {}
  for i = 1, math.min(#order, MOST_MAPS) do
    local group, rows, columns = groups[order[i]], {}, {}
    for k, s in ipairs(group) do rows[k], columns[k] = s.values[down], s.values[across] end
    rows, columns = sorted_values(rows), sorted_values(columns)
    local row_at, column_at, values, texts, best = {}, {}, {}, {}, nil
    for k, v in ipairs(rows) do row_at[v], values[k], texts[k] = k, {}, {} end
    for k, v in ipairs(columns) do column_at[v] = k end
    for _, s in ipairs(group) do
      local r, c = row_at[s.values[down]], column_at[s.values[across]]
      values[r][c] = s.mean
      texts[r][c] = s.mean and number(s.mean) .. (s.spread and " ± " .. ("%.2g"):format(s.spread) or "")
      if s.best then best = { r, c } end
    end
    out[#out + 1] = chart.heat { title = plan.metric, note = order[i] ~= "" and order[i] or nil, rows = rows, columns = columns, values = values,
      texts = #columns <= 6 and texts or nil, best = best, span = spread_of(found.settings),
      x = plan.labels[across], y = plan.labels[down], lower = plan.better == "lower" }
  end
  return out
end

-- --- points
local function points(found, title, x_of, o)
  local list = {}
  for _, s in ipairs(found.settings) do
    local x = x_of(s)
    if x and s.mean then
      list[#list + 1] = { x = x, y = s.mean, spread = s.spread, best = s.best, label = name_of(found.plan, s) }
    end
  end
  if #list < 2 then return nil end
  return chart.points { title = title, points = list, x = o.x, y = found.plan.metric, log = o.log, note = o.note }
end

local function scores(found)
  local out = { maps(found) }
  local keys, plan = swept(found.plan), found.plan
  if #keys == 1 then
    local all = true
    for _, s in ipairs(found.settings) do all = all and tonumber(s.values[keys[1]]) end
    if all then
      out[#out + 1] = points(found, "by " .. plan.labels[keys[1]], function(s) return tonumber(s.values[keys[1]]) end,
        { x = plan.labels[keys[1]], log = true, note = "bars: spread over seeds" })
    end
  end
  out[#out + 1] = points(found, "by parameters trained", function(s) return s.trainable end,
    { x = "parameters trained", log = true, note = "bars: spread over seeds; the best is marked" })
  if #out == 0 then return nil end
  return { el("div", { class = "charts" }, out), el("p", { class = "soft" },
    "Colours of a heat map span at least twice the mean spread over seeds: what can't be told apart looks alike.") }
end

-- --- curves
-- Mean over the runs of a setting, at the steps that all of them have; points_of(run) gives xs and ys.
local function mean_points(runs, points_of)
  local sum, count, order = {}, {}, {}
  for _, run in ipairs(runs) do
    local xs, ys = points_of(run)
    for i, x in ipairs(xs) do
      if not sum[x] then
        sum[x], count[x] = 0, 0
        order[#order + 1] = x
      end
      sum[x], count[x] = sum[x] + ys[i], count[x] + 1
    end
  end
  table.sort(order)
  local xs, ys = {}, {}
  for _, x in ipairs(order) do
    if count[x] == #runs then xs[#xs + 1], ys[#ys + 1] = x, sum[x] / count[x] end
  end
  return xs, ys
end

local function mean_series(runs, key)
  return mean_points(runs, function(run) return runs_of.series(run, key) end)
end

local function of_path(t, path)
  for part in path:gmatch "[^.]+" do t = type(t) == "table" and t[part] or nil end
  return type(t) == "number" and t or nil
end

-- The compared figure at each evaluation.
local function score_series(runs, metric)
  return mean_points(runs, function(run)
    local xs, ys = {}, {}
    for _, e in ipairs(run.evaluations) do
      local v = of_path(e.values, metric)
      if v then xs[#xs + 1], ys[#ys + 1] = e.step, v end
    end
    return xs, ys
  end)
end

local function curves(found, runs)
  local shown, names, marks = {}, {}, nil
  for _, s in ipairs(found.settings) do
    if #shown < MOST_LINES and runs[s] and #runs[s] > 0 then
      shown[#shown + 1] = s
      names[#shown] = name_of(found.plan, s)
      marks = marks or runs[s][1].switches
    end
  end
  if #shown == 0 then return nil end
  local every, out = {}, {}
  for _, s in ipairs(shown) do
    for _, run in ipairs(runs[s]) do every[#every + 1] = run end
  end
  local function panel(title, of, o)
    local series = {}
    for i, s in ipairs(shown) do
      local x, y = of(runs[s])
      if #x > 0 then series[#series + 1] = { name = names[i], x = x, y = y, color = i } end
    end
    out[#out + 1] = #series > 0 and chart.lines { title = title, series = series, marks = marks, smooth = o and o.smooth, legend = false,
      note = o and o.note } or nil
  end
  panel(found.plan.metric, function(list) return score_series(list, found.plan.metric) end, { note = "at each evaluation" })
  local keys = runs_of.keys(every, "^loss_")
  table.sort(keys, function(a, b)
    if (a == "loss_total") ~= (b == "loss_total") then return a == "loss_total" end
    return a < b
  end)
  for _, key in ipairs(keys) do panel(key:match "^loss_(.*)$", function(list) return mean_series(list, key) end, { smooth = true }) end
  return { chart.legend(names), el("div", { class = "charts" }, out), el("p", { class = "soft" },
    ("Means over the seeds of a setting%s. What is shared of the first phase is one line."):format(
      #found.settings > #shown and (", of the %d best settings"):format(#shown) or "")) }
end

-- --- captions, cells
local function captions(found, runs)
  local first, last
  for _, s in ipairs(found.settings) do
    if s.mean and runs[s] and runs[s][1] then
      first = first or s
      last = s
    end
  end
  if not first then return nil end
  -- of one seed where there is one that both have: the same pictures are held out then
  local pair = { [first] = runs[first][1], [last] = runs[last][1] }
  for _, a in ipairs(runs[first]) do
    for _, b in ipairs(runs[last]) do
      if not pair.seed and a.config and b.config and a.config.seed == b.config.seed then
        pair = { [first] = a, [last] = b, seed = a.config.seed }
      end
    end
  end
  local cards, by = {}, {}
  for _, s in ipairs(first == last and { first } or { first, last }) do
    local run = pair[s]
    local e = run.evaluations[#run.evaluations]
    for i, sample in ipairs(e and e.values.captions and e.values.captions.samples or {}) do
      local card = by[sample.name]
      if not card and #cards < 12 then
        card = { run = run, index = i, sample = sample, said = {} }
        by[sample.name], cards[#cards + 1] = card, card
      end
      if card then table.insert(card.said, { s == first and "best" or "worst", sample.generated }) end
    end
  end
  if #cards == 0 then return nil end
  return { el("p", { class = "soft" }, ("Best: %s. Worst: %s. %s."):format(name_of(found.plan, first), name_of(found.plan, last),
    pair.seed and "Both of seed " .. pair.seed or "One run of each")),
    require("weft.report.html_sections").cards(cards) }
end

local function cell_table(found)
  local plan, rows, left = found.plan, {}, { true }
  local head = { "cell" }
  for _, key in ipairs(plan.keys) do head[#head + 1] = key end
  local scaled = tables.has_scale(plan)
  if scaled then head[#head + 1] = "effective scale" end
  left[#head + 1] = true
  for _, h in ipairs { "state", plan.metric, "parameters trained", "seconds" } do head[#head + 1] = h end
  for i, c in ipairs(found.cells) do
    local row = { c.name }
    for _, key in ipairs(plan.keys) do row[#row + 1] = c.values[key] end
    if scaled then row[#row + 1] = c.scale and "×" .. c.scale or "–" end
    for _, v in ipairs { c.state, number(c.score), commas(c.trainable), c.seconds and ("%.0f"):format(c.seconds) or "–" } do row[#row + 1] = v end
    rows[i] = row
  end
  local same = {}
  for i, word in ipairs(plan.fixed or {}) do
    local key, v = word:match "^([^=]*)=(.*)$"
    same[i] = { key or word, v or "" }
  end
  local failed = {}
  for _, c in ipairs(found.cells) do
    if c.state == "failed" then failed[#failed + 1] = el("pre", nil, c.name .. "\n" .. table.concat(c.message, "\n")) end
  end
  local values = {}
  for i, key in ipairs(plan.keys) do
    local list = {}
    for k, c in ipairs(found.cells) do list[k] = c.values[key] end
    values[i] = { key, table.concat(sorted_values(list), ", ") }
  end
  return { el("h3", nil, "Settings that differ"), markup.table({ "key", "values" }, values, { left = { true, true } }),
    #same > 0 and { el("h3", nil, "The same for all, other than in the recipe"), markup.table({ "key", "value" }, same, { left = { true, true } }) },
    #failed > 0 and { el("h3", nil, "Failed"), failed },
    el("details", nil, el("summary", nil, ("All %d cells"):format(#rows)), markup.table(head, rows, { left = left })) }
end

---The page of an ablation.
---@param found table  of ablate.results' collect
---@return string html
function M.report(found)
  local runs, done = {}, 0
  for _, s in ipairs(found.settings) do
    runs[s] = {}
    for _, c in ipairs(cells_of(found, s)) do
      if c.state == "done" then
        local run = runs_of.read(c.dir)
        if run then table.insert(runs[s], run) end
        done = done + 1
      end
    end
  end
  local best = found.settings[1]
  local title = ("%s over %s"):format(found.plan.name, table.concat(found.plan.keys, ", "))
  local tiles = { el("div", { class = "tile" }, el("b", nil, ("%d of %d"):format(done, #found.cells)), el("span", nil, "cells done")) }
  if best and best.mean then
    tiles[#tiles + 1] = el("div", { class = "tile" }, el("b", nil, number(best.mean) .. (best.spread and " ± " .. ("%.2g"):format(best.spread) or "")),
      el("span", nil, ("best %s (%s is better)"):format(found.plan.metric, found.plan.better)))
    tiles[#tiles + 1] = el("div", { class = "tile" }, el("b", nil, name_of(found.plan, best)), el("span", nil, "best setting"))
  end
  return html.page(title, { el("h1", nil, title), el("p", { class = "soft" }, found.dir), el("div", { class = "tiles" }, tiles), html.sections {
    { "settings", "Settings compared", settings_table(found, runs) },
    { "scores", "Scores", scores(found) },
    { "curves", "Curves over each other", curves(found, runs) },
    { "captions", "Captions of the best and the worst", captions(found, runs) },
    { "cells", "What was run", cell_table(found) },
  } })
end

---Writes DIR/report.html.
---@param found table
---@param path? string
---@return true?, string? message
function M.write(found, path)
  local ok, message = files.write(path or found.dir .. "/report.html", (M.report(found)))
  return ok, message
end

return M
