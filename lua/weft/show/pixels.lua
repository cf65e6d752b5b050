-- pixels.lua: what a value looks like: a picture [height, width, 3] of bytes, made of a file, a picture, an
-- encoder's input, or the numbers of a matrix.
local A = require "weft.args"

local M = {}

-- Dark blue, green, yellow: evenly light to the eye. Five stops of a map in that manner.
local STOPS = { { 68, 1, 84 }, { 59, 82, 139 }, { 33, 145, 140 }, { 94, 201, 98 }, { 253, 231, 37 } }

---The colour of a number from 0 to 1.
function M.color(t)
  t = math.max(0, math.min(1, t)) * (#STOPS - 1)
  local i = math.min(#STOPS - 1, math.floor(t) + 1)
  local f, a, b = t - (i - 1), STOPS[i], STOPS[i + 1]
  return a[1] + (b[1] - a[1]) * f, a[2] + (b[2] - a[2]) * f, a[3] + (b[3] - a[3]) * f
end

local function image() return require "weft.io.image" end

---A matrix [height, width] as colours, lowest to highest (or between low and high); NaN is grey.
function M.heat(t, low, high)
  local x = t:detach():to("float64"):contiguous()
  local h, w, data = x:size(1), x:size(2), x:data()
  if not low then
    low, high = math.huge, -math.huge
    for i = 0, h * w - 1 do
      local v = data[i]
      if v == v and math.abs(v) ~= math.huge then low, high = math.min(low, v), math.max(high, v) end
    end
  end
  local out = image().canvas(h, w, 128)
  local p = out:data()
  for i = 0, h * w - 1 do
    local v = data[i]
    if v == v then
      local r, g, b = M.color(high > low and (v - low) / (high - low) or 0.5)
      p[3 * i], p[3 * i + 1], p[3 * i + 2] = r, g, b
    end
  end
  return out, low, high
end

-- [3, H, W] floats as bytes: an encoder's input is taken back by its mean and spread, 0..1 is scaled.
local function of_floats(t)
  local im = image()
  local x = t:detach():to("float64"):contiguous()
  local h, w, data = x:size(2), x:size(3), x:data()
  local low, high = x:min():item(), x:max():item()
  local plain = low >= 0 and high <= 1
  local out = im.canvas(h, w, 0)
  local p = out:data()
  for c = 0, 2 do
    local mean, std = plain and 0 or im.mean[c + 1], plain and 1 or im.std[c + 1]
    for i = 0, h * w - 1 do
      p[3 * i + c] = math.max(0, math.min(255, math.floor(255 * (data[c * h * w + i] * std + mean) + 0.5)))
    end
  end
  return out
end

local MOST = 12

local function sheet(t, n, of)
  local list, texts = {}, {}
  for i = 1, math.min(n, MOST) do list[i], texts[i] = of(t:select(1, i)), tostring(i) end
  local side = math.max(list[1].shape[1], list[1].shape[2])
  local columns = math.min(#list, 4)
  return image().sheet(list, texts, { columns = columns, cell = math.max(48, math.min(160, side)), lines = 1, gap = 4 })
end

---A value as a picture, and what it was taken for.
---@param v any  a path; a tensor [H,W,3] of bytes, [3,H,W] or [N,3,H,W] of floats, [H,W], [N,H,W], [N]
---@return weft.Tensor picture, string kind
function M.of(v)
  if type(v) == "string" then
    local picture, message = image().load(v)
    if not picture then error(message, 0) end
    return picture, "picture"
  end
  if not A.is_tensor(v) then A.raise("show: a tensor or the path of a picture is expected, got %s", A.typename(v)) end
  if v.device ~= "cpu" then v = v:detach():to "cpu" end
  local n, shape = v.ndim, v.shape
  if v:numel() == 0 then A.raise("show: the tensor [%s] is empty", table.concat(shape, ",")) end
  if n == 3 and shape[3] == 3 and v.dtype == "uint8" then return v, "picture" end
  if n == 3 and shape[1] == 3 then return of_floats(v), "picture" end
  if n == 4 and shape[2] == 3 then return sheet(v, shape[1], of_floats), "pictures" end
  if n == 4 and shape[4] == 3 and v.dtype == "uint8" then return sheet(v, shape[1], function(t) return t end), "pictures" end
  if n == 0 then v = v:reshape(1, 1) elseif n == 1 then v = v:reshape(1, shape[1]) end
  if v.ndim == 2 then
    local picture, low, high = M.heat(v)
    return picture, ("%.4g .. %.4g"):format(low, high)
  end
  while v.ndim > 3 do v = v:select(1, 1) end
  return sheet(v, v:size(1), function(t) return (M.heat(t)) end), "the first of " .. v:size(1)
end

return M
