-- html_sections.lua: the parts of a report's page. Each takes the runs and returns elements, or nothing
-- where they have nothing to show.
local axes = require "weft.report.axis"
local chart = require "weft.report.chart"
local markup = require "weft.report.markup"
local runs_of = require "weft.report.runs"
local scores = require "weft.report.scores"

local M = {}

local el = markup.el

local function commas(n) return (require("weft.nn.module").commas(n)) end
local function percent(v) return type(v) == "number" and ("%.1f %%"):format(100 * v) or "–" end
local function duration(s)
  if s < 90 then return ("%.0f s"):format(s) end
  return s < 5400 and ("%.1f min"):format(s / 60) or ("%.1f h"):format(s / 3600)
end
local function sorted(t)
  local keys = {}
  for k in pairs(t) do keys[#keys + 1] = k end
  table.sort(keys)
  return keys
end
local label = scores.label
local function value(v) return type(v) == "number" and ("%.14g"):format(v) or tostring(v) end

function M.recipes(runs)
  local names = {}
  for _, run in ipairs(runs) do names[run.recipe] = true end
  return table.concat(sorted(names), ", ")
end

-- --- what stands at the top
local function status(run)
  if run.result then return ("%s steps in %s"):format(commas(run.result.step), duration(run.result.seconds)) end
  local last = run.rows[#run.rows]
  if run.checkpoint then return ("as it was at step %s, %s"):format(commas(run.state.step or 0), run.phase or "") end
  return last and ("not at its end: step %s, %s"):format(commas(last.step), run.phase or "") or "nothing trained yet"
end

local function tile(big, small) return el("div", { class = "tile" }, el("b", nil, big), el("span", nil, small)) end

function M.lead(runs)
  if #runs > 1 then
    return { chart.legend(M.names(runs)), scores.lead(runs, function(run)
      local last = run.rows[#run.rows] or {}
      return { run.name, last.loss_total and axes.short(last.loss_total) or "–",
        #M.trained(run) > 0 and commas(math.max(unpack(M.trained(run)))) or "–", status(run) }
    end) }
  end
  local run = runs[1]
  local e, last = scores.last(run), run.rows[#run.rows] or {}
  local s, tiles = e and e.values or {}, {}
  if s.retrieval and s.retrieval.r_mean then
    local r = s.retrieval
    tiles[#tiles + 1] = tile(percent(r.r_mean), ("mean recall at 1, 5, 10 among %s pictures; chance %s"):format(commas(r.pictures),
      percent(scores.chance(r))))
  end
  if s.itm and s.itm.itm_acc then tiles[#tiles + 1] = tile(percent(s.itm.itm_acc), "matching right; always no: " .. percent(s.itm.majority)) end
  if last.loss_total then tiles[#tiles + 1] = tile(axes.short(last.loss_total), "loss at step " .. commas(last.step)) end
  local counts = M.trained(run)
  if #counts > 0 then
    tiles[#tiles + 1] = tile(commas(math.max(unpack(counts))), run.model and ("parameters trained, of " .. commas(run.model.total)) or "parameters trained")
  end
  if run.result then
    tiles[#tiles + 1] = tile(duration(run.result.seconds), ("%s steps, peak memory %s MiB"):format(commas(run.result.step),
      commas(math.floor(run.result.peak_rss_mib or 0))))
  end
  local notes = {}
  if not run.result then notes[#notes + 1] = status(run) end
  if run.result and run.result.frozen_unchanged == false then notes[#notes + 1] = "frozen weights have changed" end
  if run.result and (run.result.skipped or 0) > 0 then notes[#notes + 1] = commas(run.result.skipped) .. " steps were skipped" end
  if run.damaged_rows > 0 then notes[#notes + 1] = run.damaged_rows .. " lines of metrics.jsonl can't be read" end
  return { el("p", { class = "soft" }, run.place), el("div", { class = "tiles" }, tiles), #notes > 0 and el("p", nil, table.concat(notes, "; ")) }
end

---How many parameters trained in each phase.
function M.trained(run)
  local out = {}
  for _, n in pairs((run.result or run.state).trainable or {}) do out[#out + 1] = n end
  return out
end

-- --- charts
local function lines_of(runs, key, fn)
  local series = {}
  for i, run in ipairs(runs) do
    local x, y = runs_of.series(run, key, fn)
    if #x > 0 then series[#series + 1] = { name = run.name, x = x, y = y, color = #runs > 1 and i or nil } end
  end
  return series
end

-- Where phases change, if all runs agree as far as they have come.
local function marks(runs)
  local most = runs[1].switches
  for _, run in ipairs(runs) do
    if #run.switches > #most then most = run.switches end
  end
  for _, run in ipairs(runs) do
    local last = run.rows[#run.rows]
    for i, mark in ipairs(most) do
      local own = run.switches[i]
      if own and own[1] ~= mark[1] or not own and last and last.step >= mark[1] then return {} end
    end
  end
  return most
end

local function panel(runs, title, key, o)
  o = o or {}
  local series = lines_of(runs, key, o.fn)
  for _, s in ipairs(series) do s.color = s.color or o.color end
  return chart.lines { title = title, series = series, marks = marks(runs), refs = o.refs, log = o.log, smooth = o.smooth, legend = false,
    note = o.note, y = o.y, zero = o.zero }
end

-- A loss's value when its input is ignored, as the last row says.
local function prior(runs, name)
  for i = #runs[1].rows, 1, -1 do
    local v = runs[1].rows[i]["prior_" .. name]
    if type(v) == "number" then return { { v, "input ignored" } } end
  end
end

function M.losses(runs)
  local out = {}
  local keys = runs_of.keys(runs, "^loss_")
  table.sort(keys, function(a, b)
    if (a == "loss_total") ~= (b == "loss_total") then return a == "loss_total" end
    return a < b
  end)
  for i, key in ipairs(keys) do
    local name = key:match "^loss_(.*)$"
    local weight = runs[1].config["weights." .. name]
    out[#out + 1] = panel(runs, name, key, { color = i, smooth = true, refs = prior(runs, name),
      note = weight and #runs == 1 and ("weight %s"):format(value(weight)) or nil })
  end
  if #out == 0 then return nil end
  return { #runs > 1 and chart.legend(M.names(runs)), el("div", { class = "charts" }, out),
    el("p", { class = "soft" }, "Pale: each step; strong: the mean over neighbouring steps. Dashed: a phase begins."
      .. " Hover, touch, or focus a chart and press the arrow keys to read values.") }
end

function M.names(runs)
  local names = {}
  for i, run in ipairs(runs) do names[i] = run.name end
  return names
end

local function spread_wide(series)
  local all = {}
  for i, s in ipairs(series) do all[i] = s.y end
  local low, high = axes.range(all, 0)
  return low and high / low > 30
end

local SHOWN = { epoch = true, step = true, phase = true, lr = true, grad_norm = true, seconds = true, step_seconds = true, waited = true,
  images = true, tokens = true, itm_acc = true, itm_majority = true, tau = true, queue = true, itc_negatives = true }

-- What else a model logs, where it moves.
local function others(runs)
  local out = {}
  for _, key in ipairs(runs_of.keys(runs, "^[%a_]")) do
    if not SHOWN[key] and not key:find "^loss_" and not key:find "^lr_" and not key:find "^prior_" and #out < 12 then
      local low, high = axes.range { select(2, runs_of.series(runs[1], key)) }
      if low and high > low then out[#out + 1] = key end
    end
  end
  return out
end

function M.training(runs)
  local out = {}
  local rates = runs_of.keys(runs, "^lr_")
  if #runs == 1 and #rates > 0 then
    local series, same = {}, {}
    for _, key in ipairs(rates) do
      local x, y = runs_of.series(runs[1], key)
      local id = table.concat(x, ",") .. "|" .. table.concat(y, ",")
      local name = key:match "^lr_(.*)$"
      if same[id] then same[id].name = same[id].name .. ", " .. name else
        same[id] = { name = name, x = x, y = y }
        series[#series + 1] = same[id]
      end
    end
    out[#out + 1] = chart.lines { title = "learning rate", note = "by group of parameters", series = series, marks = marks(runs), zero = true }
  else
    out[#out + 1] = panel(runs, "learning rate", "lr", { zero = true, note = "of the fastest group" })
  end
  out[#out + 1] = panel(runs, "gradient norm", "grad_norm", { log = spread_wide(lines_of(runs, "grad_norm")), smooth = true,
    refs = type(runs[1].config.clip) == "number" and { { runs[1].config.clip, "clipped above" } } or nil, note = "before clipping" })
  out[#out + 1] = panel(runs, "pictures a second", "images", { zero = true, smooth = true, fn = function(row)
    return type(row.step_seconds) == "number" and row.step_seconds > 0 and row.images / row.step_seconds or nil
  end })
  out[#out + 1] = panel(runs, "caption tokens a second", "tokens", { zero = true, smooth = true, fn = function(row)
    return type(row.step_seconds) == "number" and row.step_seconds > 0 and row.tokens and row.tokens / row.step_seconds or nil
  end })
  out[#out + 1] = panel(runs, "waiting for data", "waited", { zero = true, note = "share of the step, %", fn = function(row)
    return type(row.step_seconds) == "number" and row.step_seconds > 0 and row.waited and 100 * row.waited / row.step_seconds or nil
  end })
  out[#out + 1] = panel(runs, "matching right in training", "itm_acc", { smooth = true, note = "share of pairs" })
  out[#out + 1] = panel(runs, "temperature", "tau")
  for _, key in ipairs(others(runs)) do out[#out + 1] = panel(runs, key, key) end
  if #out == 0 then return nil end
  return { #runs > 1 and chart.legend(M.names(runs)), el("div", { class = "charts" }, out) }
end

-- --- captions
local function samples_of(e) return e.values and e.values.captions and e.values.captions.samples or {} end

local MOST_SAMPLES = 12

-- Pictures with their captions and what was said of them: cards of { run, index, sample, said = { { who, text } } }.
function M.cards(cards)
  local out = {}
  for i, c in ipairs(cards) do
    local said = {}
    for k, pair in ipairs(c.said) do said[k] = el("p", nil, el("span", nil, pair[1]), pair[2] == "" and "(nothing)" or pair[2]) end
    local uri = runs_of.picture(c.run, c.index, c.sample)
    local name = tostring(c.sample.name):match "[^/]*$"
    out[i] = el("div", { class = "sample" }, uri and el("img", { src = uri, alt = name }) or el("p", { class = "soft" }, "the picture is gone"),
      el("p", nil, el("span", nil, name), c.sample.caption), said)
  end
  return el("div", { class = "samples" }, out)
end

function M.samples(runs)
  local cards, by = {}, {}
  for _, run in ipairs(runs) do
    for _, e in ipairs(run.evaluations) do
      -- of several runs only what each said last
      if #runs == 1 or e == run.evaluations[#run.evaluations] then
        for i, s in ipairs(samples_of(e)) do
          local id = tostring(s.name)
          if not by[id] and #cards < MOST_SAMPLES then
            by[id] = { run = run, index = i, sample = s, said = {} }
            cards[#cards + 1] = by[id]
          end
          if by[id] then table.insert(by[id].said, { #runs == 1 and label(e) or run.name, s.generated }) end
        end
      end
    end
  end
  if #cards == 0 then return nil end
  return M.cards(cards)
end

-- --- settings, parameters, environment
local function all_settings(runs)
  local paths = {}
  for _, run in ipairs(runs) do
    for path in pairs(run.config) do paths[path] = true end
  end
  local rows = {}
  for i, path in ipairs(sorted(paths)) do
    rows[i] = { path }
    for k, run in ipairs(runs) do rows[i][k + 1] = run.config[path] == nil and "–" or value(run.config[path]) end
  end
  return rows
end

function M.config(runs)
  local out, left = {}, { true }
  for i = 1, #runs + 2 do left[i] = true end
  local rows = all_settings(runs)
  if #runs == 1 then
    local run, changed = runs[1], {}
    if run.defaults then
      for _, path in ipairs(sorted(run.defaults)) do changed[#changed + 1] = { path, value(run.config[path]), value(run.defaults[path]) } end
      out[#out + 1] = el("h3", nil, "What differs from the recipe's defaults")
      out[#out + 1] = #changed > 0 and markup.table({ "key", "here", "default" }, changed, { left = left }) or el("p", nil, "Nothing.")
    elseif run.overrides:find "%S" then
      out[#out + 1] = { el("h3", nil, "What the command line changed"), el("pre", nil, run.overrides) }
    end
    out[#out + 1] = el("p", { class = "soft" }, ("Recipe %s, hash %s"):format(run.path or run.recipe, run.hash or "?"))
  else
    local differ = {}
    for _, row in ipairs(rows) do
      for k = 3, #row do
        if row[k] ~= row[2] then
          differ[#differ + 1] = row
          break
        end
      end
    end
    out[#out + 1] = el("h3", nil, "Settings that differ")
    out[#out + 1] = #differ > 0 and markup.table({ "key", unpack(M.names(runs)) }, differ, { left = left })
      or el("p", nil, "None: all of these runs have the same settings.")
  end
  out[#out + 1] = el("details", nil, el("summary", nil, ("All %d settings"):format(#rows)),
    markup.table(#runs == 1 and { "key", "value" } or { "key", unpack(M.names(runs)) }, rows, { left = left }))
  return out
end

local function parameter_table(run)
  local m = run.model
  local head, rows, sums = { "part", "parameters" }, {}, {}
  for _, name in ipairs(m.phases) do head[#head + 1] = "trained in " .. name end
  for i, part in ipairs(m.parts) do
    rows[i] = { part.name, commas(part.parameters) }
    for k = 1, #m.phases do
      rows[i][k + 2] = commas(part.trainable[k] or 0)
      sums[k] = (sums[k] or 0) + (part.trainable[k] or 0)
    end
  end
  local all = { "all", commas(m.total), class = "best" }
  for k = 1, #m.phases do all[k + 2] = commas(sums[k] or 0) end
  rows[#rows + 1] = all
  local notes = {}
  for _, name in ipairs(sorted(m.adapters or {})) do
    for line in m.adapters[name]:gmatch "[^\n]+" do notes[#notes + 1] = el("p", nil, name .. ": " .. line) end
  end
  return { markup.table(head, rows), notes }
end

-- What steps took of the device's memory, beside what was said before the first of them.
local function memory_table(run)
  local size, rows = require("weft.train.memory").size, {}
  for i, m in ipairs(run.result and type(run.result.memory) == "table" and run.result.memory or {}) do
    rows[i] = { m.name, size(m.measured), m.estimated and size(m.estimated) or "–",
      m.estimated and ("%+.1f %%"):format(100 * (m.estimated / m.measured - 1)) or "–" }
  end
  return #rows > 0 and markup.table({ "memory of a step", "measured", "estimated by shapes", "" }, rows) or nil
end

function M.parameters(runs)
  local out = {}
  for _, run in ipairs(runs) do
    if run.model then
      if #runs > 1 then out[#out + 1] = el("h3", nil, run.name) end
      out[#out + 1] = { parameter_table(run), memory_table(run) }
    end
  end
  return out
end

function M.environment(runs)
  local keys, rows, left = {}, {}, {}
  for i, run in ipairs(runs) do
    left[i + 1] = true
    for key in pairs(run.environment) do keys[key] = true end
  end
  left[1] = true
  for i, key in ipairs(sorted(keys)) do
    rows[i] = { key }
    for k, run in ipairs(runs) do rows[i][k + 1] = run.environment[key] == nil and "–" or value(run.environment[key]) end
  end
  local hashes = { { "hash of initial weights", "initial" }, { "hash of data and order", "data" }, { "hash of final weights", "final" } }
  for _, h in ipairs(hashes) do
    local row, any = { h[1] }, false
    for k, run in ipairs(runs) do
      local v = run.result and run.result.hashes and run.result.hashes[h[2]]
      any = any or v
      row[k + 1] = v or "–"
    end
    if any then rows[#rows + 1] = row end
  end
  if #rows == 0 then return nil end
  return markup.table(#runs == 1 and { "", "" } or { "", unpack(M.names(runs)) }, rows, { left = left })
end

return M
