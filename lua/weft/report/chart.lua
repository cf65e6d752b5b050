-- chart.lua: charts as inline SVG: lines over steps, points, heat maps, bars. A page's style colours them;
-- lines carry their values beside them for the page's script to show under the pointer.
local axes = require "weft.report.axis"
local markup = require "weft.report.markup"

local M = {}

local el = markup.el
local W, H, LEFT, TOP, RIGHT, BOTTOM = 400, 232, 52, 14, 12, 34
local MOST = 1200  -- points of a line that are drawn; of more, every so many-th

local function at(v) return (("%.2f"):format(v):gsub("%.?0+$", "")) end

local function text(x, y, words, o)
  o = o or {}
  return el("text", { x = at(x), y = at(y), ["text-anchor"] = o.anchor, class = o.class, transform = o.transform }, words)
end

local function frame(x, y, o)
  local out = {}
  for _, v in ipairs(y.ticks) do
    out[#out + 1] = el("line", { class = "grid", x1 = LEFT, x2 = W - RIGHT, y1 = at(y.place(v)), y2 = at(y.place(v)) })
    out[#out + 1] = text(LEFT - 6, y.place(v) + 4, axes.short(v), { anchor = "end" })
  end
  for _, v in ipairs(x.ticks) do
    out[#out + 1] = el("line", { class = "axis", x1 = at(x.place(v)), x2 = at(x.place(v)), y1 = H - BOTTOM, y2 = H - BOTTOM + 4 })
    out[#out + 1] = text(x.place(v), H - BOTTOM + 16, axes.short(v), { anchor = "middle" })
  end
  out[#out + 1] = el("line", { class = "axis", x1 = LEFT, x2 = W - RIGHT, y1 = H - BOTTOM, y2 = H - BOTTOM })
  if o.x then out[#out + 1] = text((LEFT + W - RIGHT) / 2, H - 4, o.x, { anchor = "middle", class = "name" }) end
  if o.y then
    out[#out + 1] = text(0, 0, o.y, { anchor = "middle", class = "name",
      transform = ("translate(11 %s) rotate(-90)"):format(at((TOP + H - BOTTOM) / 2)) })
  end
  return out
end

local function svg(children, o)
  return el("svg", { viewBox = ("0 0 %d %d"):format(W, o.height or H), role = "img", ["aria-label"] = o.title, xmlns = "http://www.w3.org/2000/svg",
    class = o.class }, o.style and el("style", nil, markup.raw(o.style)), children)
end

local function figure(class, o, drawing, ...)
  if o.bare then return drawing end
  return el("figure", { class = class }, el("figcaption", nil, o.title, o.note and el("small", nil, " " .. o.note)), drawing, ...)
end

local function usable(v, log) return type(v) == "number" and v == v and math.abs(v) ~= math.huge and (not log or v > 0) end

-- A path through the points; what is not a number breaks it.
local function path(xs, ys, x, y, every)
  local out, pen = {}, false
  for i = 1, #xs do
    if i % every == 1 or every == 1 or i == #xs then
      if usable(ys[i], y.log) then
        out[#out + 1] = ("%s%s %s"):format(pen and "L" or "M", at(x.place(xs[i])), at(y.place(ys[i])))
        pen = true
      else
        pen = false
      end
    end
  end
  return table.concat(out)
end

-- Mean over the steps around each one, so that a noisy line can be read: fewer at its beginning, where it falls
-- steeply; at its end those before it, lest the last step alone speak.
local function smooth(ys, span)
  local sums, counts, out = { [0] = 0 }, { [0] = 0 }, {}
  for i, v in ipairs(ys) do
    sums[i], counts[i] = sums[i - 1] + (usable(v) and v or 0), counts[i - 1] + (usable(v) and 1 or 0)
  end
  for i, v in ipairs(ys) do
    local reach = math.min(math.floor(span / 2), i - 1)
    local last = math.min(i + reach, #ys)
    local n = counts[last] - counts[i - reach - 1]
    out[i] = usable(v) and n > 0 and (sums[last] - sums[i - reach - 1]) / n or v
  end
  return out
end

-- Steps that a smooth line takes together: more of a long run.
function M.span(n) return math.max(5, math.min(101, 2 * math.floor(n / 50) + 1)) end

function M.legend(names)
  local items = {}
  for i, name in ipairs(names) do
    items[i] = el("span", { class = "key" }, el("i", { class = "c" .. ((i - 1) % 8 + 1) }), name)
  end
  return el("p", { class = "legend" }, items)
end

---Lines over a common x: o.series = { { name, x = {}, y = {}, color } }; marks = { { x, label } } are vertical
---lines, refs = { { y, label } } horizontal ones; log; smooth (a mean over neighbours is drawn above the values).
---@param o table
---@return table? node  nil where there is nothing to draw
function M.lines(o)
  local xs, ys = {}, {}
  for i, s in ipairs(o.series) do xs[i], ys[i] = s.x, s.y end
  local low, high = axes.range(ys, o.log and 0 or nil)
  if not low then return nil end
  local refs = {}
  for _, r in ipairs(o.refs or {}) do
    if usable(r[1], o.log) then
      refs[#refs + 1] = r
      low, high = math.min(low, r[1]), math.max(high, r[1])
    end
  end
  if o.zero and low > 0 then low = 0 end
  local x_low, x_high = axes.range(xs)
  local x = axes.new(x_low, x_high, LEFT, W - RIGHT, { tight = true, ticks = 5 })
  local y = axes.new(low, high, H - BOTTOM, TOP, { log = o.log, ticks = 5 })
  local drawn = frame(x, y, { x = o.x or "step", y = o.y })
  for _, r in ipairs(refs) do
    drawn[#drawn + 1] = el("line", { class = "ref", x1 = LEFT, x2 = W - RIGHT, y1 = at(y.place(r[1])), y2 = at(y.place(r[1])) })
    drawn[#drawn + 1] = text(W - RIGHT, y.place(r[1]) - 3, r[2], { anchor = "end", class = "note" })
  end
  for _, m in ipairs(o.marks or {}) do
    drawn[#drawn + 1] = el("line", { class = "mark", x1 = at(x.place(m[1])), x2 = at(x.place(m[1])), y1 = TOP, y2 = H - BOTTOM })
    local late = x.place(m[1]) > (LEFT + W - RIGHT) / 2 + 40
    drawn[#drawn + 1] = text(x.place(m[1]) + (late and -4 or 4), TOP + 9, m[2], { anchor = late and "end" or nil, class = "note" })
  end
  local data, most = { frame = { LEFT, TOP, W - LEFT - RIGHT, H - TOP - BOTTOM }, width = W, x = { x.low, x.high }, y = { y.low, y.high },
    log = o.log or false, name = o.x or "step", series = require("weft.io.json").array {} }, 0
  for i, s in ipairs(o.series) do
    local color = (s.color or i - 1) % 8 + 1
    if s.color then color = (s.color - 1) % 8 + 1 end
    local every = math.max(1, math.ceil(#s.x / MOST))
    most = math.max(most, every)
    local soft = o.smooth and #s.x > 15
    drawn[#drawn + 1] = el("path", { class = "line c" .. color .. (soft and " faint" or ""), d = path(s.x, s.y, x, y, every) })
    if soft then
      drawn[#drawn + 1] = el("path", { class = "line c" .. color, d = path(s.x, smooth(s.y, M.span(#s.x)), x, y, every) })
    end
    local kept = { name = s.name, c = color, x = {}, y = {} }
    for k = 1, #s.x do
      if (k % every == 1 or every == 1 or k == #s.x) and usable(s.y[k]) then
        table.insert(kept.x, s.x[k])
        table.insert(kept.y, s.y[k])
      end
    end
    if #kept.x > 0 then table.insert(data.series, kept) end
  end
  drawn[#drawn + 1] = el("line", { class = "cross", x1 = 0, x2 = 0, y1 = TOP, y2 = H - BOTTOM })
  local names = {}
  for i, s in ipairs(o.series) do names[i] = s.name end
  if most > 1 then o.note = ("%severy %d steps"):format(o.note and o.note .. ", " or "", most) end
  return figure("lines", o, svg(drawn, o), o.legend ~= false and #names > 1 and M.legend(names), markup.json(data))
end

---Points: o.points = { { x, y, label, spread, best } }; log is of the x axis.
---@param o table
function M.points(o)
  table.sort(o.points, function(a, b) return (b.best or false) and not a.best end)  -- the best on top
  local xs, ys = {}, {}
  for i, p in ipairs(o.points) do
    xs[i] = p.x
    ys[#ys + 1], ys[#ys + 2] = p.y - (p.spread or 0), p.y + (p.spread or 0)
  end
  local low, high = axes.range { ys }
  if not low then return nil end
  local x_low, x_high = axes.range { xs }
  local log = o.log and x_low > 0 and x_high > 3 * x_low
  local x = axes.new(log and x_low / 1.1 or x_low, log and x_high * 1.1 or x_high, LEFT, W - RIGHT, { log = log, ticks = 4 })
  local y = axes.new(low, high, H - BOTTOM, TOP, { ticks = 5 })
  local drawn = frame(x, y, o)
  for _, p in ipairs(o.points) do
    local px, py = at(x.place(p.x)), at(y.place(p.y))
    if p.spread then
      drawn[#drawn + 1] = el("line", { class = "bar", x1 = px, x2 = px, y1 = at(y.place(p.y - p.spread)), y2 = at(y.place(p.y + p.spread)) })
    end
    drawn[#drawn + 1] = el("circle", { class = p.best and "dot c2" or "dot c1", cx = px, cy = py, r = p.best and 6 or 4.5 },
      el("title", nil, ("%s: %s%s"):format(p.label, axes.short(p.y), p.spread and " ± " .. axes.short(p.spread) or "")))
  end
  return figure("points", o, svg(drawn, o))
end

-- Pale to deep blue, and ink that can be read on it.
local function shade(t)
  local a, b = { 226, 238, 251 }, { 16, 68, 138 }
  local c = {}
  for i = 1, 3 do c[i] = math.floor(a[i] + (b[i] - a[i]) * t + 0.5) end
  return ("rgb(%d %d %d)"):format(c[1], c[2], c[3]), t > 0.5 and "#fff" or "#123"
end

---A heat map: o.rows and o.columns are labels, o.values[row][column] numbers (nil: none), o.texts what their
---cells say; x and y name the sides; best = { row, column }; lower: small is deep; span: what the colours span at least,
---so that differences within the noise look alike.
---@param o table
function M.heat(o)
  local all = {}
  for r = 1, #o.rows do
    for c = 1, #o.columns do
      if o.values[r][c] then all[#all + 1] = o.values[r][c] end
    end
  end
  local low, high = axes.range { all }
  if not low then return nil end
  local more = math.max(0, (o.span or 0) - (high - low)) / 2
  low, high = low - more, high + more
  local left, top = 64, 22
  local w, h = (W - left - RIGHT) / #o.columns, math.max(18, math.min(40, 260 / #o.rows))
  local drawn = {}
  for c, name in ipairs(o.columns) do
    if #o.columns <= 16 then drawn[#drawn + 1] = text(left + (c - 0.5) * w, top - 6, name, { anchor = "middle" }) end
  end
  for r, name in ipairs(o.rows) do
    drawn[#drawn + 1] = text(left - 6, top + (r - 0.5) * h + 4, name, { anchor = "end" })
    for c = 1, #o.columns do
      local v = o.values[r][c]
      local fill, ink = shade(v and high > low and (o.lower and high - v or v - low) / (high - low) or 0.3)
      local best = o.best and o.best[1] == r and o.best[2] == c
      drawn[#drawn + 1] = el("rect", { x = at(left + (c - 1) * w + 1), y = at(top + (r - 1) * h + 1), width = at(w - 2), height = at(h - 2),
        fill = v and fill or "none", class = best and "cell best" or "cell" },
        el("title", nil, ("%s, %s: %s"):format(name, o.columns[c], v and axes.short(v) or "none")))
      if w > 24 then
        drawn[#drawn + 1] = el("text", { x = at(left + (c - 0.5) * w), y = at(top + (r - 0.5) * h + 4), ["text-anchor"] = "middle",
          fill = v and ink or "currentColor", class = "value" }, o.texts and o.texts[r][c] or v and axes.short(v) or "–")
      end
    end
  end
  local height = top + #o.rows * h + 22
  if o.x then drawn[#drawn + 1] = text(left + (W - left - RIGHT) / 2, height - 5, o.x, { anchor = "middle", class = "name" }) end
  if o.y then
    drawn[#drawn + 1] = text(0, 0, o.y, { anchor = "middle", class = "name",
      transform = ("translate(11 %s) rotate(-90)"):format(at(top + #o.rows * h / 2)) })
  end
  o.height = height
  return figure("heat", o, svg(drawn, o))
end

---Bars beside each other: o.bars = { { label, value } }, or edges = {} for a histogram's.
---@param o table
function M.bars(o)
  local values = {}
  for i, b in ipairs(o.bars) do values[i] = b[2] end
  local low, high = axes.range { values }
  if not low then return nil end
  local y = axes.new(math.min(0, low), math.max(0, high), H - BOTTOM, TOP, { ticks = 4 })
  local n = #o.bars
  local w = (W - LEFT - RIGHT) / n
  local x = o.edges and axes.new(o.edges[1], o.edges[#o.edges], LEFT, W - RIGHT, { tight = true }) or { ticks = {} }
  local drawn = frame(x, y, o)
  for i, b in ipairs(o.bars) do
    local top, zero = y.place(math.max(b[2], 0)), y.place(math.min(b[2], 0))
    drawn[#drawn + 1] = el("rect", { class = "fill c1", x = at(LEFT + (i - 1) * w + 0.5), width = at(math.max(w - 1, 0.5)), y = at(top),
      height = at(zero - top) }, el("title", nil, ("%s: %s"):format(b[1], axes.short(b[2]))))
    if not o.edges and n <= 12 then
      drawn[#drawn + 1] = text(LEFT + (i - 0.5) * w, H - BOTTOM + 16, b[1], { anchor = "middle" })
    end
  end
  return figure("bars", o, svg(drawn, o))
end

return M
