-- palette.lua: the few colours that a picture is drawn with where a terminal has no more: median cut (Heckbert
-- 1982) over a histogram of 32 levels a channel.
local M = {}

local function bin_of(r, g, b)
  return bit.bor(bit.lshift(bit.rshift(r, 3), 10), bit.lshift(bit.rshift(g, 3), 5), bit.rshift(b, 3))
end

-- What of a picture falls into each bin: { n, sums of the three channels }.
local function histogram(p, n)
  local bins, list = {}, {}
  for at = 0, 3 * (n - 1), 3 do
    local r, g, b = p[at], p[at + 1], p[at + 2]
    local id = bin_of(r, g, b)
    local bin = bins[id]
    if not bin then
      bin = { n = 0, id = id, 0, 0, 0 }
      bins[id], list[#list + 1] = bin, bin
    end
    bin.n, bin[1], bin[2], bin[3] = bin.n + 1, bin[1] + r, bin[2] + g, bin[3] + b
  end
  table.sort(list, function(a, b) return a.id < b.id end)
  return list
end

-- A box of bins: pixels in it, its widest channel, and how much there is to gain by cutting it.
local function box_of(list)
  local box = { list = list, n = 0, channel = 1, gain = 0 }
  for _, bin in ipairs(list) do box.n = box.n + bin.n end
  for c = 1, 3 do
    local low, high = math.huge, -math.huge
    for _, bin in ipairs(list) do
      local v = bin[c] / bin.n
      low, high = math.min(low, v), math.max(high, v)
    end
    local gain = #list > 1 and box.n * (high - low) ^ 2 or 0
    if gain > box.gain then box.channel, box.gain = c, gain end
  end
  return box
end

-- Two boxes of about as many pixels, at least a bin in each.
local function cut(box)
  local list, c = box.list, box.channel
  table.sort(list, function(a, b)
    local x, y = a[c] / a.n, b[c] / b.n
    if x ~= y then return x < y end
    return a.id < b.id
  end)
  local left, right, seen = {}, {}, 0
  for i, bin in ipairs(list) do
    if i == 1 or i < #list and seen + bin.n / 2 < box.n / 2 then left[#left + 1] = bin else right[#right + 1] = bin end
    seen = seen + bin.n
  end
  return box_of(left), box_of(right)
end

---At most `most` colours for n pixels of three bytes.
---@param p ffi.cdata*
---@param n integer
---@param most integer
---@return number[][] colours  { r, g, b }, 0..255
---@return fun(r: integer, g: integer, b: integer): integer index  which of them stands for a pixel's colour
function M.of(p, n, most)
  local boxes = { box_of(histogram(p, n)) }
  while #boxes < most do
    local widest = 1
    for i, box in ipairs(boxes) do
      if box.gain > boxes[widest].gain then widest = i end
    end
    if boxes[widest].gain == 0 then break end
    boxes[widest], boxes[#boxes + 1] = cut(boxes[widest])
  end
  local colours, of = {}, {}
  for i, box in ipairs(boxes) do
    local sum = { 0, 0, 0 }
    for _, bin in ipairs(box.list) do
      for c = 1, 3 do sum[c] = sum[c] + bin[c] end
      of[bin.id] = i
    end
    colours[i] = { sum[1] / box.n, sum[2] / box.n, sum[3] / box.n }
  end
  return colours, function(r, g, b) return of[bin_of(r, g, b)] end
end

return M
