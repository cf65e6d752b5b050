-- curves.lua: the losses of metrics.jsonl as one picture: a panel a loss, phases marked.
local image = require "weft.io.image"
local files = require "weft.files"
local json = require "weft.io.json"

local M = {}

local COLORS = { { 31, 119, 180 }, { 214, 39, 40 }, { 44, 160, 44 }, { 148, 103, 189 }, { 255, 127, 14 }, { 23, 190, 207 } }
local PANEL_W, PANEL_H, LEFT, TOP, RIGHT, BOTTOM = 420, 240, 56, 28, 12, 28

local function dot(data, width, height, x, y, c)
  x, y = math.floor(x + 0.5), math.floor(y + 0.5)
  if x < 0 or y < 0 or x >= width or y >= height then return end
  local at = (y * width + x) * 3
  data[at], data[at + 1], data[at + 2] = c[1], c[2], c[3]
end

local function line(data, width, height, x0, y0, x1, y1, c)
  local n = math.max(math.abs(x1 - x0), math.abs(y1 - y0), 1)
  for i = 0, n do dot(data, width, height, x0 + (x1 - x0) * i / n, y0 + (y1 - y0) * i / n, c) end
end

-- Running mean, so that a noisy curve can be read.
local function smooth(values, span)
  local out, m = {}, nil
  for i, v in ipairs(values) do
    m = m and m + (v - m) / span or v
    out[i] = m
  end
  return out
end

---Rows of metrics.jsonl.
function M.read(dir)
  local rows = {}
  for text in (files.read(dir .. "/metrics.jsonl") or ""):gmatch "[^\n]+" do
    local row = json.decode(text)
    if row then rows[#rows + 1] = row end
  end
  return rows
end

---Writes curves.png into a run's folder.
function M.write(dir)
  local rows = M.read(dir)
  if #rows < 2 then return end
  local names = {}
  for key in pairs(rows[1]) do
    if key:match "^loss_" then names[#names + 1] = key end
  end
  for _, row in ipairs(rows) do
    for key in pairs(row) do
      if key:match "^loss_" and not table.concat(names, " "):find(key, 1, true) then names[#names + 1] = key end
    end
  end
  table.sort(names)
  local columns = math.min(3, #names)
  local height = math.ceil(#names / columns) * PANEL_H
  local width = columns * PANEL_W
  local canvas = image.canvas(height, width)
  local data = canvas:data()
  local last = rows[#rows].step
  for k, name in ipairs(names) do
    local ox, oy = (k - 1) % columns * PANEL_W, math.floor((k - 1) / columns) * PANEL_H
    local xs, ys, switch = {}, {}, {}
    for i, row in ipairs(rows) do
      if type(row[name]) == "number" then xs[#xs + 1], ys[#ys + 1] = row.step, row[name] end
      if i > 1 and row.phase ~= rows[i - 1].phase then switch[#switch + 1] = row.step end
    end
    local low, high = math.huge, -math.huge
    for _, v in ipairs(ys) do low, high = math.min(low, v), math.max(high, v) end
    if high - low < 1e-12 then low, high = low - 0.5, high + 0.5 end
    local w, h = PANEL_W - LEFT - RIGHT, PANEL_H - TOP - BOTTOM
    local function px(step) return ox + LEFT + w * step / last end
    local function py(v) return oy + TOP + h * (1 - (v - low) / (high - low)) end
    local grey, light = { 150, 150, 150 }, { 225, 225, 225 }
    for i = 0, 4 do
      local v = low + (high - low) * i / 4
      line(data, width, height, ox + LEFT, py(v), ox + LEFT + w, py(v), light)
      image.text(canvas, math.floor(py(v)) - 3, ox + 4, ("%8.3g"):format(v))
    end
    line(data, width, height, ox + LEFT, oy + TOP, ox + LEFT, oy + TOP + h, grey)
    line(data, width, height, ox + LEFT, oy + TOP + h, ox + LEFT + w, oy + TOP + h, grey)
    for _, s in ipairs(switch) do
      for y = oy + TOP, oy + TOP + h, 4 do dot(data, width, height, px(s), y, { 90, 90, 90 }) end
      image.text(canvas, oy + TOP - 10, math.floor(px(s)) - 20, "phase 2")
    end
    local color = COLORS[(k - 1) % #COLORS + 1]
    local pale = { 128 + color[1] / 2, 128 + color[2] / 2, 128 + color[3] / 2 }
    for i = 2, #xs do line(data, width, height, px(xs[i - 1]), py(ys[i - 1]), px(xs[i]), py(ys[i]), pale) end
    local mean = smooth(ys, 12)
    for i = 2, #xs do
      line(data, width, height, px(xs[i - 1]), py(mean[i - 1]), px(xs[i]), py(mean[i]), color)
      line(data, width, height, px(xs[i - 1]), py(mean[i - 1]) + 1, px(xs[i]), py(mean[i]) + 1, color)
    end
    image.text(canvas, oy + 8, ox + LEFT, name:gsub("^loss_", ""), { scale = 2 })
    image.text(canvas, oy + PANEL_H - 18, ox + LEFT, "0")
    image.text(canvas, oy + PANEL_H - 18, ox + PANEL_W - RIGHT - 60, ("step %d"):format(last))
  end
  assert(image.save(dir .. "/curves.png", canvas))
end

return M
