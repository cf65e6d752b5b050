-- plot.lua: weft.plot: curves, histograms and heat maps, as text in the terminal or as SVG.
local A = require "weft.args"
local axes = require "weft.report.axis"
local terminal = require "weft.terminal"

local M = {}

local INKS = { { 60, 120, 230 }, { 230, 110, 30 }, { 30, 170, 110 }, { 190, 90, 200 }, { 200, 160, 20 }, { 220, 60, 80 } }

local function numbers(v, what)
  if A.is_tensor(v) then return (v:detach():to("float64"):flatten():totable()) end
  if type(v) ~= "table" then A.raise("plot: %s: numbers are expected, got %s", what, A.typename(v)) end
  for i, x in ipairs(v) do
    if type(x) ~= "number" then A.raise("plot: %s[%d]: a number is expected, got %s", what, i, A.typename(x)) end
  end
  return v
end

-- A run's losses, by name.
local function losses_of(run)
  local runs = require "weft.report.runs"
  local read, message = runs.read(run.dir)
  if not read then error(message, 0) end
  local series = {}
  for _, key in ipairs(runs.keys({ read }, "^loss_")) do
    local x, y = runs.series(read, key)
    series[#series + 1] = { name = key:match "^loss_(.*)$", x = x, y = y }
  end
  return series
end

-- What is given as a list of { name, x, y }.
local function series_of(value)
  if A.is_tensor(value) or type(value) == "table" and type(value[1]) == "number" then
    local y, x = numbers(value, "values"), {}
    for i = 1, #y do x[i] = i end
    return { { name = "", x = x, y = y } }
  end
  if type(value) ~= "table" then A.raise("plot: a tensor, a list of numbers, or curves by name are expected, got %s", A.typename(value)) end
  if type(value.dir) == "string" then return (losses_of(value)) end
  local names, out = {}, {}
  for name in pairs(value) do names[#names + 1] = tostring(name) end
  table.sort(names)
  for _, name in ipairs(names) do
    local v = value[name] or value[tonumber(name)]
    local y
    local x = {}
    if type(v) == "table" and v.x and v.y then x, y = numbers(v.x, name .. ".x"), numbers(v.y, name .. ".y") else
      y = numbers(v, name)
      for i = 1, #y do x[i] = i end
    end
    if #x ~= #y then A.raise("plot: %s: %d places and %d values", name, #x, #y) end
    out[#out + 1] = { name = name, x = x, y = y }
  end
  return out
end

-- --- curves in text: a cell of a terminal as 2 x 4 dots
local DOTS = { [0] = { [0] = 0x01, 0x02, 0x04, 0x40 }, { [0] = 0x08, 0x10, 0x20, 0x80 } }

local function braille(bits)
  local code = 0x2800 + bits
  return string.char(0xE0 + bit.rshift(code, 12), 0x80 + bit.band(bit.rshift(code, 6), 63), 0x80 + bit.band(code, 63))
end

local function ink(kind, k)
  local c = INKS[(k - 1) % #INKS + 1]
  return terminal.color(kind, false, c[1], c[2], c[3]), kind ~= "none" and "\27[0m" or ""
end

local function usable(v) return v == v and math.abs(v) ~= math.huge end

local function curves_text(series, columns, rows, title)
  local xs, ys = {}, {}
  for i, s in ipairs(series) do xs[i], ys[i] = s.x, s.y end
  local low, high = axes.range(ys)
  if not low then A.raise "plot: there is no finite number to draw" end
  local x_low, x_high = axes.range(xs)
  if high == low then low, high = low - 0.5, high + 0.5 end
  local h = math.max(2, rows)
  local middle = axes.short(tonumber(("%.3g"):format(high - (high - low) * (math.floor(h / 2) + 0.5) / h)))
  local top, bottom = axes.short(high), axes.short(low)
  local left = math.max(#top, #bottom, #middle, 5) + 1
  local w = math.max(8, columns - left - 1)
  local bits, who = {}, {}
  local function dot(x, y, k)
    local cx, cy = math.floor(x / 2), math.floor(y / 4)
    if cx < 0 or cy < 0 or cx >= w or cy >= h then return end
    local at = cy * w + cx
    bits[at] = bit.bor(bits[at] or 0, DOTS[x % 2][y % 4])
    who[at] = k
  end
  for k, s in ipairs(series) do
    local px, py
    for i = 1, #s.x do
      if usable(s.y[i]) then
        local x = math.floor((s.x[i] - x_low) / math.max(x_high - x_low, 1e-300) * (2 * w - 1) + 0.5)
        local y = math.floor((high - s.y[i]) / (high - low) * (4 * h - 1) + 0.5)
        local n = px and math.max(math.abs(x - px), math.abs(y - py)) or 0
        for j = 1, n do dot(math.floor(px + (x - px) * j / n + 0.5), math.floor(py + (y - py) * j / n + 0.5), k) end
        if n == 0 then dot(x, y, k) end
        px, py = x, y
      else px = nil end
    end
  end
  local kind, lines = terminal.colors(), {}
  if title then lines[1] = title end
  for cy = 0, h - 1 do
    local label = cy == 0 and top or cy == h - 1 and bottom or cy == math.floor(h / 2) and middle or ""
    local out, last = { (" "):rep(left - 1 - #label) .. label .. "│" }, nil
    for cx = 0, w - 1 do
      local k = who[cy * w + cx]
      if k ~= last then
        local on, off = ink(kind, k or 1)
        out[#out + 1] = k and on or off
        last = k
      end
      out[#out + 1] = bits[cy * w + cx] and braille(bits[cy * w + cx]) or " "
    end
    if last then out[#out + 1] = select(2, ink(kind, 1)) end
    lines[#lines + 1] = (table.concat(out):gsub(" +$", ""))
  end
  local from, to = axes.short(x_low), axes.short(x_high)
  lines[#lines + 1] = (" "):rep(left - 1) .. "└" .. ("─"):rep(w)
  lines[#lines + 1] = (" "):rep(left) .. from .. (" "):rep(math.max(1, w - #from - #to)) .. to
  local legend = {}
  for k, s in ipairs(series) do
    local on, off = ink(kind, k)
    if s.name ~= "" then legend[#legend + 1] = ("%s%s%s %s"):format(on, kind == "none" and tostring(k) or "━", off, s.name) end
  end
  if #legend > 0 then lines[#lines + 1] = (" "):rep(left) .. table.concat(legend, "   ") end
  return table.concat(lines, "\n") .. "\n"
end

-- --- histograms
local function counts_of(values, bins)
  local low, high = axes.range { values }
  if not low then A.raise "plot: there is no finite number to draw" end
  if high == low then low, high = low - 0.5, high + 0.5 end
  local counts, left = {}, 0
  for i = 1, bins do counts[i] = 0 end
  for _, v in ipairs(values) do
    if usable(v) then
      local k = math.min(bins, math.floor((v - low) / (high - low) * bins) + 1)
      counts[k] = counts[k] + 1
    else left = left + 1 end
  end
  return counts, low, high, left
end

local EIGHTHS = { [0] = "", "▏", "▎", "▍", "▌", "▋", "▊", "▉" }

local function histogram_text(values, bins, columns, title)
  local counts, low, high, left = counts_of(values, bins)
  local most, lines, edges, wide = 1, {}, {}, 0
  for i = 1, bins do
    most = math.max(most, counts[i])
    edges[i] = ("%.4g"):format(low + (high - low) * (i - 1) / bins)
    wide = math.max(wide, #edges[i])
  end
  if title then lines[1] = title end
  for i = 1, bins do
    local room = math.max(8, columns - wide - #tostring(most) - 4)
    local eighths = math.floor(counts[i] / most * room * 8 + 0.5)
    lines[#lines + 1] = ("%s │%s%s %d"):format((" "):rep(wide - #edges[i]) .. edges[i], ("█"):rep(math.floor(eighths / 8)), EIGHTHS[eighths % 8], counts[i])
  end
  lines[#lines + 1] = ("%s │ %d values%s"):format((" "):rep(math.max(0, wide - #axes.short(high))) .. ("%.4g"):format(high), #values,
    left > 0 and (", %d not finite"):format(left) or "")
  return table.concat(lines, "\n") .. "\n"
end

-- --- SVG
local function svg_style()
  local style = require "weft.report.style"
  local vars = { "--bg:#fff", "--fg:#1b1f27", "--soft:#5c6370", "--rule:#e2e5ea" }
  for i, c in ipairs(style.colors.light) do vars[#vars + 1] = ("--c%d:%s"):format(i, c) end
  return "svg{" .. table.concat(vars, ";") .. "}" .. style.chart
end

local function write_svg(path, node)
  if not node then A.raise "plot: there is no finite number to draw" end
  local ok, message = require("weft.files").write(path, '<?xml version="1.0" encoding="UTF-8"?>\n' .. tostring(node) .. "\n")
  if not ok then error("plot: " .. message, 0) end
end

local function heat_svg(t, o)
  local rows, columns, values = {}, {}, t:detach():to("float64"):totable()
  for i = 1, #values do rows[i] = #values <= 32 and tostring(i) or "" end
  for i = 1, #values[1] do columns[i] = #values[1] <= 16 and tostring(i) or "" end
  return require("weft.report.chart").heat { title = o.title or "heat map", rows = rows, columns = columns, values = values, bare = true,
    style = svg_style() }
end

---Plots numbers: in the terminal, or into an SVG file.
---A tensor [N] or a list is a curve, a matrix a heat map, anything larger a histogram of its values; a table of
---such by name ({ name = list } or { name = { x = list, y = list } }) curves over each other; a run its losses.
---@param value any
---@param options? table  kind ("curve", "histogram", "heat"), path (an .svg that is written in place of drawing),
---  title, bins (20), columns, rows
---
---    weft.plot({ sine = weft.sin(weft.arange(100) / 8), line = weft.arange(100) / 100 }, { path = "curves.svg" })
function M.plot(value, options)
  local o = A.options(options, { kind = A.none, path = A.none, title = A.none, bins = 20, columns = A.none, rows = A.none }, "plot")
  local kind = o.kind
  if not kind then
    kind = A.is_tensor(value) and (value.ndim == 2 and "heat" or value.ndim > 2 and "histogram") or "curve"
  end
  if kind ~= "curve" and kind ~= "histogram" and kind ~= "heat" then A.choice(kind, { curve = 1, histogram = 1, heat = 1 }, "plot", "kind") end
  if o.path and not o.path:find "%.svg$" then A.raise("plot: path: an .svg is expected, got %s", o.path) end
  local chart = o.path and require "weft.report.chart"
  local columns, rows = terminal.size()
  columns, rows = o.columns or math.min(columns, 100), o.rows or math.max(6, math.min(rows - 6, 18))
  if kind == "heat" then
    if not A.is_tensor(value) then value = require("weft").tensor(value) end
    if o.path then write_svg(o.path, heat_svg(value, o)) else
      if o.title then io.write(o.title, "\n") end
      require("weft.show").show(value, { columns = columns, rows = rows })
    end
  elseif kind == "histogram" then
    local values = numbers(value, "values")
    if o.path then
      local counts, low, high = counts_of(values, o.bins)
      local bars, edges = {}, {}
      for i = 1, o.bins do
        edges[i] = low + (high - low) * (i - 1) / o.bins
        bars[i] = { ("from %.4g"):format(edges[i]), counts[i] }
      end
      edges[#edges + 1] = high
      write_svg(o.path, chart.bars { title = o.title or "histogram", bars = bars, edges = edges, bare = true, style = svg_style(), y = "count" })
    else io.write(histogram_text(values, o.bins, columns, o.title)) end
  else
    local series = series_of(value)
    if o.path then write_svg(o.path, chart.lines { title = o.title or "curves", series = series, bare = true, style = svg_style(), x = "" })
    else io.write(curves_text(series, columns, rows, o.title)) end
  end
  io.flush()
end

return M
