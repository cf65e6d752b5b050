-- draw.lua: a picture [height, width, 3] of bytes as text that a terminal draws: kitty's protocol, sixel,
-- half blocks in colour, or plain characters.
local terminal = require "weft.terminal"

local M = {}

local function image() return require "weft.io.image" end

local function fit(picture, width, height, grow)
  local h, w = picture.shape[1], picture.shape[2]
  local scale = math.min(width / w, height / h)
  if scale > 1 then scale = grow and math.max(1, math.floor(scale)) or 1 end
  local size = { math.max(1, math.floor(h * scale)), math.max(1, math.floor(w * scale)) }
  if size[1] == h and size[2] == w then return picture end
  if scale > 1 then  -- cells of a matrix stay sharp
    local out = image().canvas(size[1], size[2], 0)
    local from, to = picture:contiguous():data(), out:data()
    for y = 0, size[1] - 1 do
      for x = 0, size[2] - 1 do
        local a, b = (y * size[2] + x) * 3, (math.floor(y / scale) * w + math.floor(x / scale)) * 3
        to[a], to[a + 1], to[a + 2] = from[b], from[b + 1], from[b + 2]
      end
    end
    return out
  end
  return image().resize(picture, size)
end
M.fit = fit

---Two rows of the picture a line: the upper is the character, the lower what is behind it.
function M.blocks(picture, columns, rows, kind)
  local small = fit(picture, columns, 2 * rows, true):contiguous()
  local h, w, p = small.shape[1], small.shape[2], small:data()
  local lines = {}
  for y = 0, h - 1, 2 do
    local out, fg, bg = {}, nil, nil
    for x = 0, w - 1 do
      local a, b = (y * w + x) * 3, ((y + 1) * w + x) * 3
      local upper = terminal.color(kind, false, p[a], p[a + 1], p[a + 2])
      local lower = y + 1 < h and terminal.color(kind, true, p[b], p[b + 1], p[b + 2]) or "\27[49m"
      if upper ~= fg then out[#out + 1], fg = upper, upper end
      if lower ~= bg then out[#out + 1], bg = lower, lower end
      out[#out + 1] = "▀"
    end
    lines[#lines + 1] = table.concat(out) .. "\27[0m"
  end
  return table.concat(lines, "\n") .. "\n"
end

local RAMP = " .:-=+*#%@"

---Light and dark as characters.
function M.text(picture, columns, rows)
  local w0, h0 = picture.shape[2], picture.shape[1]
  local w = math.max(1, math.min(columns, w0, math.floor(rows * 2 * w0 / h0)))
  local h = math.max(1, math.floor(h0 * w / w0 / 2 + 0.5))
  local small = image().resize(picture, { h, w }):contiguous()
  local p, lines = small:data(), {}
  for y = 0, h - 1 do
    local out = {}
    for x = 0, w - 1 do
      local at = (y * w + x) * 3
      local light = (0.299 * p[at] + 0.587 * p[at + 1] + 0.114 * p[at + 2]) / 255
      local k = math.min(#RAMP, math.floor(light * #RAMP) + 1)
      out[x + 1] = RAMP:sub(k, k)
    end
    lines[#lines + 1] = (table.concat(out):gsub("%s+$", ""))
  end
  return table.concat(lines, "\n") .. "\n"
end

---kitty's protocol: a PNG in pieces of at most 4096 characters.
function M.kitty(png)
  local data, out, at = require("weft.report.markup").base64(png), {}, 1
  repeat
    local piece = data:sub(at, at + 4095)
    at = at + 4096
    local more = at <= #data and 1 or 0
    out[#out + 1] = #out == 0 and ("\27_Ga=T,f=100,m=%d;%s\27\\"):format(more, piece) or ("\27_Gm=%d;%s\27\\"):format(more, piece)
  until at > #data
  return table.concat(out) .. "\n"
end

-- Runs of a sixel row.
local function runs(row, n)
  local out, i = {}, 1
  while i <= n do
    local v, k = row[i] or 0, i
    while k < n and (row[k + 1] or 0) == v do k = k + 1 end
    local c, count = string.char(63 + v), k - i + 1
    out[#out + 1] = count > 3 and ("!%d%s"):format(count, c) or c:rep(count)
    i = k + 1
  end
  return table.concat(out)
end

---Sixel, in the 256 colours that suit the picture best.
function M.sixel(picture, width, height)
  local small = fit(picture, width, height, true):contiguous()
  local h, w, p = small.shape[1], small.shape[2], small:data()
  local out, colours, index = { ("\27Pq\"1;1;%d;%d"):format(w, h) }, require("weft.show.palette").of(p, h * w, 256)
  for i, c in ipairs(colours) do
    out[#out + 1] = ("#%d;2;%d;%d;%d"):format(i - 1, c[1] / 2.55 + 0.5, c[2] / 2.55 + 0.5, c[3] / 2.55 + 0.5)
  end
  for top = 0, h - 1, 6 do
    local rows, order = {}, {}
    for dy = 0, math.min(5, h - 1 - top) do
      for x = 0, w - 1 do
        local at = ((top + dy) * w + x) * 3
        local color = index(p[at], p[at + 1], p[at + 2]) - 1
        if not rows[color] then
          rows[color] = {}
          order[#order + 1] = color
        end
        rows[color][x + 1] = (rows[color][x + 1] or 0) + 2 ^ dy
      end
    end
    for i, color in ipairs(order) do
      out[#out + 1] = ("#%d%s%s"):format(color, runs(rows[color], w), i < #order and "$" or "")
    end
    out[#out + 1] = "-"
  end
  out[#out + 1] = "\27\\\n"
  return table.concat(out)
end

return M
