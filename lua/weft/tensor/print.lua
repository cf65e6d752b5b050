-- print.lua: a tensor as text: a header with its statistics, then its values, edges only when large.
local ffi = require "ffi"
local C = require("weft.core").lib

local M = {}
local EDGE = 3  -- positions shown at either end of the last two dims; of the dims before them, one

local function format_of(values, integral)
  if integral then return "%d" end
  local largest, smallest = 0, math.huge
  for _, v in ipairs(values) do
    local a = math.abs(v)
    if a == a and a < math.huge then
      largest = math.max(largest, a)
      if a > 0 then smallest = math.min(smallest, a) end
    end
  end
  if largest >= 1e5 or (largest > 0 and largest < 1e-3) then return "%.4e" end
  return "%.4f"
end

local function statistics(t, p)
  if p.v.numel == 0 then return "empty" end
  local y = t.dtype == "float64" and t:detach() or t:detach():to "float64"
  local flat = y:contiguous():data()
  local n = tonumber(p.v.numel)
  local low, high, sum, nans = math.huge, -math.huge, 0, 0
  for i = 0, n - 1 do
    local v = flat[i]
    if v ~= v then nans = nans + 1
    else
      if v < low then low = v end
      if v > high then high = v end
      sum = sum + v
    end
  end
  if nans == n then return ("%d NaN"):format(nans) end
  return ("min %.4g  mean %.4g  max %.4g%s"):format(low, sum / (n - nans), high, nans > 0 and ("  %d NaN"):format(nans) or "")
end

---The tensor as text.
function M.tensor(t)
  if t.p == nil or t.gen ~= t.p.gen then return "tensor (freed)" end
  local p = t.p
  local shape = "[" .. table.concat(t.shape, ",") .. "]"
  local head = ("%s %s %s"):format(t.dtype, shape, t.device)
  if p.requires_grad then head = head .. (p.is_leaf and "  requires_grad" or "  from " .. ffi.string(C.weft_grad_op(p))) end
  if p.v.device == C.WEFT_META then return head end
  return (require("weft.autograd").no_grad(function()
    return require("weft.scope").scope(function()
      if p.v.device ~= C.WEFT_CPU then
        t = t:detach():to "cpu"
        p = t.p
      end
      local integral = not t.dtype:find "float"
      if p.v.numel == 1 then
        local v = t:reshape({ 1 }):to("float64"):data()[0]
        return ("%s  %s"):format(head, integral and tostring(v) or ("%.6g"):format(v))
      end
      local lines = { head .. "  " .. statistics(t, p) }
      if p.v.numel == 0 then return lines[1] end
      -- the corner blocks that will be shown
      local shown = {}
      local part, ndim = t:detach(), p.v.ndim
      for d = 1, ndim do
        local n, edge, fits = part:size(d), EDGE, 2 * EDGE + 2
        if d <= ndim - 2 then edge, fits = 1, 2 end
        if n > fits then
          shown[d] = edge
          part = require("weft.ops").functions.cat({ part:narrow(d, 1, edge), part:narrow(d, n - edge + 1, edge) }, d)
        end
      end
      local flat = part:to("float64"):contiguous():data()
      local values = {}
      for i = 1, part:numel() do values[i] = flat[i - 1] end
      local fmt = format_of(values, integral)
      local texts, width = {}, 0
      for i, v in ipairs(values) do
        texts[i] = v == v and math.abs(v) < math.huge and fmt:format(v) or (v ~= v and "nan" or v > 0 and "inf" or "-inf")
        width = math.max(width, #texts[i])
      end
      local at = 0
      local sizes = part.shape
      local function block(dim, indent)
        if dim == #sizes then
          local cells = {}
          for i = 1, sizes[dim] do
            if i - 1 == shown[dim] then cells[#cells + 1] = "..." end
            at = at + 1
            cells[#cells + 1] = (" "):rep(width - #texts[at]) .. texts[at]
          end
          lines[#lines + 1] = indent .. table.concat(cells, "  ")
          return
        end
        for i = 1, sizes[dim] do
          if i - 1 == shown[dim] then lines[#lines + 1] = indent .. "..." end
          if #sizes - dim >= 2 and i > 1 then lines[#lines + 1] = "" end
          block(dim + 1, indent)
        end
        return
      end
      block(1, "  ")
      return table.concat(lines, "\n")
    end)
  end))
end

return M
