-- lora_conv2d.lua: a Conv2d with low-rank branches beside it: A is a convolution of the same kernel to r
-- channels, B one of a single pixel from them. y = conv(x, W) + b + s conv(conv(x~, A), B).
local module = require "weft.nn.module"
local nn = require "weft.nn"
local args = require "weft.args"
local ops = require("weft.ops").functions
local initial = require "weft.nn.initial"
local LoraLayer = require "weft.peft.lora_layer"

local LoraConv2d = module.class("LoraConv2d", LoraLayer)

function LoraConv2d:sizes(base)
  if base.groups ~= 1 then
    args.raise("peft.lora: %s: adapters go on convolutions of one group", base:where())
  end
  self.n_rows = base.n_out
end

function LoraConv2d:parts(o)
  local base = self.base_layer
  local kernel, stride = { base.kernel_h, base.kernel_w }, { base.stride_h, base.stride_w }
  local fan_in = base.n_in * base.kernel_h * base.kernel_w
  local a = nn.Conv2d(base.n_in, o.rank, { kernel = kernel, stride = stride, padding = { base.pad_h, base.pad_w }, bias = false,
    init = o.init == "gaussian" and initial.normal(1 / o.rank) or initial.kaiming(fan_in) })
  local b = nn.Conv2d(o.rank, base.n_out, { kernel = 1, bias = o.lora_bias,
    init = o.init == "random" and initial.kaiming(o.rank) or initial.zeros })
  return a, b
end

function LoraConv2d.file_shapes(base, o, out)
  out["lora_A.weight"] = { o.rank, base.n_in, base.kernel_h, base.kernel_w }
  out["lora_B.weight"] = { base.n_out, o.rank, 1, 1 }
  if o.lora_bias then out["lora_B.bias"] = { base.n_out } end
end

function LoraConv2d.magnitude_shape(base) return { 1, base.n_out, 1, 1 } end

function LoraConv2d:rows(w) return w:reshape(self.n_rows, w:numel() / self.n_rows) end
function LoraConv2d:unrows(m) return m:reshape(self.base_layer.weight.shape) end

local function a_channel(v) return v:reshape(1, v:numel(), 1, 1) end

-- The base's product without its bias.
local function plain(base, x)
  return (ops.conv2d(x, base.weight, nil, base.stride_h, base.stride_w, base.pad_h, base.pad_w, base.groups))
end

---x [B, in, H, W] -> [B, out, ...]
function LoraConv2d:forward(x)
  local base = self.base_layer
  if self.disabled or self.merged or #self.active == 0 then return (base(x)) end
  local y = base(x)
  for _, name in ipairs(self.active) do
    local s, a, b = self.settings[name], self.lora_A[name], self.lora_B[name]
    local p, scale = self.training and s.dropout or 0, self:scale_of(name)
    local dropped = p > 0 and ops.dropout(x, p, self:rng("lora_dropout/" .. name)) or x
    local branch = b(a(dropped)) * scale
    if s.dora then
      local factors = a_channel(self:row_factors(name))
      y = y + plain(base, dropped) * (factors - 1) + branch * factors
    else
      y = y + branch
    end
  end
  return y
end

return LoraConv2d
