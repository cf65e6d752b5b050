-- conv2d.lua: two-dimensional convolution (cross-correlation) with zero padding.
local module = require "weft.nn.module"
local initial = require "weft.nn.initial"
local A = require "weft.args"
local ops = require("weft.ops").functions

local Conv2d = module.class("Conv2d", module.base)

local function pair(v, name, least)
  local a, b = v, v
  if type(v) == "table" then a, b = v[1], v[2] end
  for _, n in ipairs { a or false, b or false } do
    if type(n) ~= "number" or n % 1 ~= 0 or n < least then
      A.raise("Conv2d: %s: a whole number from %d, or a pair { h, w } of them, is expected", name, least)
    end
  end
  return a, b
end

---weight [out, in / groups, kh, kw], bias [out] unless bias = false.
---@param n_in integer
---@param n_out integer
---@param options table kernel (a number or { h, w }), stride (1), padding (0), groups (1), bias (true), init
function Conv2d:init(n_in, n_out, options)
  local o = A.options(options, { kernel = A.required, stride = 1, padding = 0, groups = 1, bias = true, init = A.none }, "Conv2d")
  if o.groups < 1 or n_in % o.groups ~= 0 or n_out % o.groups ~= 0 then
    A.raise("Conv2d: groups %s must divide %d and %d channels", tostring(o.groups), n_in, n_out)
  end
  self.n_in, self.n_out, self.groups = n_in, n_out, o.groups
  self.kernel_h, self.kernel_w = pair(o.kernel, "kernel", 1)
  self.stride_h, self.stride_w = pair(o.stride, "stride", 1)
  self.pad_h, self.pad_w = pair(o.padding, "padding", 0)
  local fan_in = n_in / o.groups * self.kernel_h * self.kernel_w
  self:parameter("weight", { n_out, n_in / o.groups, self.kernel_h, self.kernel_w }, o.init or initial.kaiming(fan_in))
  if o.bias then self:parameter("bias", { n_out }, o.init and initial.zeros or initial.kaiming(fan_in)) end
end

---x [B, in, H, W] -> [B, out, (H + 2 pad - kernel) / stride + 1, ...]
function Conv2d:forward(x)
  local v = A.tensor(x, self:where(), "x").v
  if v.ndim ~= 4 or v.shape[1] ~= self.n_in then
    A.raise("%s: x [%s]: [B, %d, H, W] is expected", self:where(), table.concat(x.shape, ","), self.n_in)
  end
  return (ops.conv2d(x, self.weight, self.bias, self.stride_h, self.stride_w, self.pad_h, self.pad_w, self.groups))
end

function Conv2d:describe()
  local text = ("%d -> %d, kernel %dx%d, stride %dx%d"):format(self.n_in, self.n_out, self.kernel_h, self.kernel_w,
    self.stride_h, self.stride_w)
  if self.pad_h > 0 or self.pad_w > 0 then text = text .. (", padding %dx%d"):format(self.pad_h, self.pad_w) end
  if self.groups > 1 then text = text .. (", groups %d"):format(self.groups) end
  return text
end

return Conv2d
