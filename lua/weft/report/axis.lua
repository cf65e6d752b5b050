-- axis.lua: from values to places: ranges, ticks at round numbers, numbers as short texts.
local M = {}

---Lowest and highest of the numbers in lists; nil where there is none.
function M.range(lists, above)
  local low, high
  for _, list in ipairs(lists) do
    for _, v in ipairs(list) do
      if type(v) == "number" and v == v and math.abs(v) ~= math.huge and (not above or v > above) then
        low, high = math.min(low or v, v), math.max(high or v, v)
      end
    end
  end
  return low, high
end

---A number as a person reads it: 1,234, 0.0312, 5e-05.
function M.short(v)
  if v % 1 == 0 and math.abs(v) >= 1000 and math.abs(v) < 1e6 then
    return (require("weft.nn.module").commas(v))
  end
  if v % 1 == 0 and math.abs(v) >= 1e6 and math.abs(v) < 1e9 and v % 1e4 == 0 then return ("%gM"):format(v / 1e6) end
  return (("%.4g"):format(v):gsub("e([+-])0*(%d)", function(sign, d) return "e" .. (sign == "-" and "-" or "") .. d end))
end

-- 1, 2 or 5 times a power of ten, about n of them in the range.
local function round_step(range, n)
  local power = 10 ^ math.floor(math.log10(range / n))
  for _, k in ipairs { 1, 2, 5, 10 } do
    if range / (k * power) <= n then return k * power end
  end
  return 10 * power
end

---An axis over low..high on places from..to: { low, high, log, ticks, place(v) }. A log axis wants low > 0.
---@param low number
---@param high number
---@param from number
---@param to number
---@param o? table  log, ticks (about how many), tight (end at the values, not at ticks)
function M.new(low, high, from, to, o)
  o = o or {}
  local axis = { log = o.log, ticks = {} }
  if o.log then
    if high <= low then low, high = low / 2, low * 2 end
    axis.low, axis.high = math.log10(low), math.log10(high)
    local pad = o.tight and 0 or 0.04 * (axis.high - axis.low)
    axis.low, axis.high = axis.low - pad, axis.high + pad
    local decades = axis.high - axis.low
    for power = math.floor(axis.low), math.ceil(axis.high) do
      for _, k in ipairs(decades <= 1.2 and { 1, 2, 3, 5, 7 } or decades <= 2.5 and { 1, 3 } or { 1 }) do
        local v = k * 10 ^ power
        local at = math.log10(v)
        if at >= axis.low and at <= axis.high and (decades <= 7 or power % 2 == 0) then axis.ticks[#axis.ticks + 1] = v end
      end
    end
  else
    if high - low < 1e-12 * math.max(1, math.abs(high)) then
      local around = math.max(math.abs(high) * 0.1, 1e-3)
      low, high = low - around, high + around
    end
    local step = round_step(high - low, o.ticks or 5)
    local first = o.tight and math.ceil(low / step - 1e-9) or math.floor(low / step + 1e-9)
    local last = o.tight and math.floor(high / step + 1e-9) or math.ceil(high / step - 1e-9)
    for i = first, last do axis.ticks[#axis.ticks + 1] = i * step == 0 and 0 or i * step end
    axis.low, axis.high = o.tight and low or first * step, o.tight and high or last * step
  end
  function axis.place(v)
    if axis.log then v = math.log10(v) end
    return from + (to - from) * (v - axis.low) / (axis.high - axis.low)
  end
  return axis
end

return M
