-- picture.lua: cases of `pictures`: resized by Pillow's rule in plain Lua, cut, mirrored, through a table.
-- The taps are those of the triangle filter, in 22-bit fixed point.
local weft = require "weft"

local M = {}

local ONE = 2 ^ 22
local function rounded(v) return v < 0 and -math.floor(-v + 0.5) or math.floor(v + 0.5) end

-- Triangle filter: taps of `to` positions over `from`, { first, count, weights... } each.
local function taps(from, to, widest)
  local scale, out = from / to, {}
  local wide = math.max(scale, 1)
  for i = 0, to - 1 do
    local center, sum, k = (i + 0.5) * scale, 0, {}
    local first, last = math.max(math.floor(center - wide + 0.5), 0), math.min(math.floor(center + wide + 0.5), from)
    for j = first, last - 1 do
      k[#k + 1] = math.max(1 - math.abs((j - center + 0.5) / wide), 0)
      sum = sum + k[#k]
    end
    out[#out + 1], out[#out + 2] = first, #k
    for j = 1, widest do out[#out + 1] = k[j] and rounded(k[j] / sum * ONE) or 0 end
  end
  return out
end

local function byte(v) return math.max(0, math.min(255, math.floor(v / ONE + 0.5))) end

-- The reference works on the plan as the kernels do, in doubles, which hold these sums exactly.
local function pictures(ins, a)
  local bytes, plan, tap, lut = ins[1].data, ins[2], ins[3].data, ins[4].data
  local height, width = a[1], a[2]
  local n, y = plan.shape[1], {}
  for i = 0, n - 1 do
    local p = {}
    for k = 0, 11 do p[k] = plan.data[i * 12 + k + 1] end
    local function source(row, column, c) return bytes[p[0] + (row * p[2] + column) * 3 + c + 1] end
    local function pass(at, widest, position, get)
      if widest == 0 then return get(position) end
      local from, sum = at + position * (widest + 2), 0
      for j = 0, tap[from + 2] - 1 do sum = sum + get(tap[from + 1] + j) * tap[from + 3 + j] end
      return byte(sum)
    end
    for c = 0, 2 do
      for row = 0, height - 1 do
        for column = 0, width - 1 do
          local v, ry, rx = 0, row + p[5], column + p[6]
          if p[1] > 0 and ry >= 0 and ry < p[3] and rx >= 0 and rx < p[4] then
            v = pass(p[10], p[11], ry, function(at)
              return pass(p[8], p[9], rx, function(x) return source(at, x, c) end)
            end)
          end
          local to = p[7] == 1 and width - 1 - column or column
          y[((i * 3 + c) * height + row) * width + to + 1] = p[1] > 0 and lut[c * 256 + v + 1] or 0
        end
      end
    end
  end
  return { shape = { n, 3, height, width }, data = y }
end

-- list: { h, w, to_h, to_w, flip } a picture; kept is the middle of { height, width }
local function case(g, list, height, width)
  local bytes, plan, all, most = {}, {}, {}, 0
  for _, p in ipairs(list) do
    local h, w, to_h, to_w = p[1], p[2], p[3], p[4]
    local function direction(from, to)
      if from == to then return 0, 0 end
      local widest, at = math.ceil(math.max(from / to, 1)) * 2 + 1, #all
      for _, v in ipairs(taps(from, to, widest)) do all[#all + 1] = v end
      return at, widest
    end
    local across, across_widest = direction(w, to_w)
    local down, down_widest = direction(h, to_h)
    local row = { #bytes, h, w, to_h, to_w, math.floor((to_h - height) / 2), math.floor((to_w - width) / 2), p[5] and 1 or 0,
      across, across_widest, down, down_widest }
    for _, v in ipairs(row) do plan[#plan + 1] = v end
    for k = 1, h * w * 3 do bytes[#bytes + 1] = (k * 7919 + h * 31 + #plan) % 256 end
    most = math.max(most, h)
  end
  local shaped = #list > 0 and weft.tensor(plan, { dtype = "int64" }):reshape(#list, 12) or weft.zeros { 0, 12, dtype = "int64" }
  return { inputs = { weft.tensor(bytes, { dtype = "uint8" }), shaped, weft.tensor(all, { dtype = "int32" }), g.randn { 3, 256 } },
    attrs = { height, width, most }, reference = pictures }
end

M.pictures = {
  cases = function(g)
    return {
      case(g, { { 4, 5, 4, 5 } }, 4, 5),
      case(g, { { 9, 7, 4, 5 }, { 3, 3, 6, 8, true }, { 4, 20, 4, 5 } }, 4, 5),
      case(g, { { 8, 8, 6, 6, true }, { 2, 3, 2, 3 }, { 0, 0, 0, 0 } }, 4, 4),     -- cut, padded, none
      case(g, { { 37, 50, 19, 26 } }, 19, 21),
    }
  end,
  refuses = function(g)
    local good = case(g, { { 4, 5, 4, 5 } }, 4, 5)
    local bytes, plan, tap, lut = unpack(good.inputs)
    local function with(i, v)
      local p = plan:clone()
      p[1][i]:fill_(v)
      return { bytes, p, tap, lut }
    end
    local list = {
      { inputs = { bytes:to "int32", plan, tap, lut }, attrs = { 4, 5, 4 }, message = "bytes must be uint8" },
      { inputs = { bytes, plan:narrow(2, 1, 11), tap, lut }, attrs = { 4, 5, 4 }, message = "plan must be %[n, 12%]" },
      { inputs = { bytes, plan, tap, lut:narrow(2, 1, 255) }, attrs = { 4, 5, 4 }, message = "table must be %[3, 256%]" },
      { inputs = { bytes, plan, tap, lut }, attrs = { 0, 5, 4 }, message = "height and width must be 1 to 65536" },
    }
    for _, change in ipairs { { 1, 2 }, { 1, -1 }, { 2, 5 }, { 3, 6 }, { 4, 9 }, { 10, 3 }, { 12, 2 ^ 40 } } do
      list[#list + 1] = { inputs = with(change[1], change[2]), attrs = { 4, 5, 4 }, message = "the plan of picture 1 leads outside its tensors" }
    end
    return list
  end,
}

return M
