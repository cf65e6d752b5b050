-- conv.lua: cases of convolution and resizing, against sums written out.

local function convolve(ins, attrs)
  local x, w, bias = ins[1], ins[2], ins[3]
  local sh, sw, ph, pw, groups = attrs[1] or 1, attrs[2] or 1, attrs[3] or 0, attrs[4] or 0, attrs[5] or 1
  local B, C, H, W = unpack(x.shape)
  local O, Cg, kh, kw = unpack(w.shape)
  local oh, ow = math.floor((H + 2 * ph - kh) / sh) + 1, math.floor((W + 2 * pw - kw) / sw) + 1
  local data = {}
  for b = 0, B - 1 do
    for o = 0, O - 1 do
      local g = math.floor(o / (O / groups))
      for i = 0, oh - 1 do
        for j = 0, ow - 1 do
          local sum = bias and bias.data[o + 1] or 0
          for c = 0, Cg - 1 do
            for p = 0, kh - 1 do
              for q = 0, kw - 1 do
                local y, z = i * sh - ph + p, j * sw - pw + q
                if y >= 0 and y < H and z >= 0 and z < W then
                  sum = sum + x.data[((b * C + g * Cg + c) * H + y) * W + z + 1] * w.data[((o * Cg + c) * kh + p) * kw + q + 1]
                end
              end
            end
          end
          data[#data + 1] = sum
        end
      end
    end
  end
  return { shape = { B, O, oh, ow }, data = data }
end

local function cubic(t, a)
  t = math.abs(t)
  if t <= 1 then return (a + 2) * t ^ 3 - (a + 3) * t ^ 2 + 1 end
  if t < 2 then return a * t ^ 3 - 5 * a * t ^ 2 + 8 * a * t - 4 * a end
  return 0
end

-- Weights of source positions for position i of a resized axis.
local function weights(i, from, to, scale, antialias)
  local step = scale > 0 and 1 / scale or from / to
  local list, total = {}, 0
  for j = 0, from - 1 do list[j] = 0 end
  if antialias then
    local f, center = math.max(step, 1), (i + 0.5) * step
    for j = math.floor(center - 2 * f + 0.5), math.floor(center + 2 * f + 0.5) - 1 do
      if j >= 0 and j < from then
        list[j] = cubic((j + 0.5 - center) / f, -0.5)
        total = total + list[j]
      end
    end
    for j = 0, from - 1 do list[j] = list[j] / total end
  else
    local center = (i + 0.5) * step - 0.5
    local base = math.floor(center)
    for j = base - 1, base + 2 do
      local inside = math.min(math.max(j, 0), from - 1)
      list[inside] = list[inside] + cubic(center - j, -0.75)
    end
  end
  return list
end

local function resize(ins, attrs)
  local x = ins[1]
  local height, width, scale_h, scale_w, antialias = attrs[1], attrs[2], attrs[3] or 0, attrs[4] or 0, attrs[5]
  local B, C, H, W = unpack(x.shape)
  local data = {}
  for plane = 0, B * C - 1 do
    for i = 0, height - 1 do
      local rows = weights(i, H, height, scale_h, antialias)
      for j = 0, width - 1 do
        local columns, sum = weights(j, W, width, scale_w, antialias), 0
        for y = 0, H - 1 do
          for z = 0, W - 1 do
            if rows[y] ~= 0 and columns[z] ~= 0 then
              sum = sum + rows[y] * columns[z] * x.data[(plane * H + y) * W + z + 1]
            end
          end
        end
        data[#data + 1] = sum
      end
    end
  end
  return { shape = { B, C, height, width }, data = data }
end

local M = {}

M.conv2d = {
  cases = function(g)
    local function case(x, w, bias, attrs)
      return { inputs = { g.randn(x), g.randn(w), bias and g.randn { w[1] } or nil, n = 3 }, attrs = attrs, reference = convolve }
    end
    return {
      case({ 2, 2, 5, 6 }, { 3, 2, 3, 3 }, true, { 1, 1, 1, 1 }),
      case({ 2, 2, 7, 6 }, { 3, 2, 3, 2 }, false, { 2, 1, 0, 1 }),
      case({ 1, 4, 5, 4 }, { 6, 2, 2, 3 }, true, { 1, 2, 1, 2, 2 }),
      case({ 2, 3, 4, 4 }, { 3, 1, 3, 3 }, true, { 1, 1, 1, 1, 3 }),
      case({ 2, 3, 6, 8 }, { 5, 3, 3, 4 }, true, { 3, 4 }),          -- patches
      case({ 1, 2, 7, 7 }, { 2, 2, 2, 2 }, true, { 3, 3 }),          -- gaps between windows
      case({ 1, 1, 1, 1 }, { 1, 1, 1, 1 }, false, {}),
      case({ 1, 1, 2, 2 }, { 1, 1, 3, 3 }, true, { 1, 1, 3, 3 }),    -- windows wholly in the padding
      case({ 0, 2, 4, 4 }, { 3, 2, 2, 2 }, true, {}),
      case({ 2, 3, 15, 17 }, { 260, 3, 2, 2 }, true, {}),            -- several pieces each way
      case({ 2, 30, 20, 18 }, { 4, 30, 2, 2 }, true, { 1, 1, 1, 0 }),
    }
  end,
  refuses = function(g)
    local function with(x, w, message, attrs, bias)
      return { inputs = { g.randn(x), g.randn(w), bias, n = 3 }, attrs = attrs, message = message }
    end
    return {
      with({ 3, 4, 4 }, { 3, 2, 2, 2 }, "x %[B, C, H, W%]"),
      with({ 1, 3, 4, 4 }, { 3, 2, 2, 2 }, "weight takes 2 channels a group, x has 3"),
      with({ 1, 3, 4, 4 }, { 4, 1, 2, 2 }, "groups must divide", { 1, 1, 0, 0, 3 }),
      with({ 1, 2, 4, 4 }, { 4, 2, 5, 2 }, "a kernel of 5 x 2 does not fit a padded picture of 4 x 4"),
      with({ 1, 2, 4, 4 }, { 4, 2, 2, 2 }, "strides must be at least 1", { 0, 1 }),
      with({ 1, 2, 4, 4 }, { 4, 2, 2, 2 }, "padding must not be negative", { 1, 1, -1, 0 }),
      with({ 1, 2, 4, 4 }, { 4, 2, 2, 2 }, "bias must be %[4%]", {}, g.randn { 3 }),
    }
  end,
}

M.interpolate = {
  cases = function(g)
    local function case(x, attrs) return { inputs = { g.randn(x) }, attrs = attrs, reference = resize } end
    local cases = {}
    for _, antialias in ipairs { false, true } do
      for _, sizes in ipairs { { 5, 8 }, { 5, 4 }, { 9, 7 }, { 1, 1 }, { 20, 3 } } do
        cases[#cases + 1] = case({ 1, 2, 9, 7 }, { sizes[1], sizes[2], 0, 0, antialias })
      end
      cases[#cases + 1] = case({ 2, 1, 1, 3 }, { 3, 2, 0, 0, antialias })
      cases[#cases + 1] = case({ 0, 2, 3, 3 }, { 2, 2, 0, 0, antialias })
    end
    -- a step of its own, as position tables want it
    cases[#cases + 1] = case({ 1, 2, 9, 7 }, { 4, 5, 4.1 / 9, 5.1 / 7 })
    cases[#cases + 1] = case({ 1, 1, 9, 7 }, { 4, 10, 4.1 / 9, 10.1 / 7, true })
    return cases
  end,
  refuses = function(g)
    return {
      { inputs = { g.randn { 3, 4 } }, attrs = { 2, 2 }, message = "%[B, C, H, W%]" },
      { inputs = { g.randn { 1, 1, 3, 4 } }, attrs = { 0, 2 }, message = "at least 1, got 0 and 2" },
      { inputs = { g.randn { 1, 1, 0, 4 } }, attrs = { 2, 2 }, message = "a picture of 0 x 4" },
      { inputs = { g.randn { 1, 1, 3, 4 } }, attrs = { 2, 2, -1 }, message = "scales must be 0 or" },
    }
  end,
}

return M
