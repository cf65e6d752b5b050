-- attention.lua: weft.attention: where an encoder looks in a picture.
local A = require "weft.args"
local common = require "weft.probe.common"

local M = {}

local function encoder_of(model)
  if model.attention and model.config and model.embeddings then return model end
  for _, m in model:named_modules() do
    if type(m.attention) == "function" and m.embeddings and m.encoder then return m end
  end
  A.raise "attention: there is no DINOv2 in this model"
end

-- A picture as the encoder wants it: as the run prepares its own, or at the encoder's size.
local function pixels_of(encoder, run, value)
  local image = require "weft.io.image"
  if type(value) == "string" then
    local picture, message = image.load(value)
    if not picture then error(message, 0) end
    value = picture
  end
  if not A.is_tensor(value) then A.raise("attention: a picture is expected, got %s", A.typename(value)) end
  if value.ndim == 4 then value = value:select(1, 1) end
  if value.ndim == 3 and value.shape[1] == 3 and value.dtype:find "float" then return value end
  local o = run and run.data.train.options
  if o then
    local small = image.center_crop(image.resize(value, require("weft.data.captioned").resize_of(o)), o.size, o.size)
    return (image.normalize(small, { mean = o.mean, std = o.std }))
  end
  local size = encoder.config.image_size
  return (image.normalize(image.resize(value, { size, size })))
end

---Attention of the class token on the patches of a picture: [heads, rows, columns] of a layer's weights. weft.show
---draws it as a sheet of heads; with over = true the mean of the heads is laid over the picture, which is returned
---as a picture [height, width, 3].
---@param model table  a DINOv2, a model with one inside, or a run
---@param picture any  a path, a picture of bytes, or the encoder's input [3,H,W]
---@param options? table  layer (the last), over (false)
---@return weft.Tensor
function M.attention(model, picture, options)
  local o = A.options(options, { layer = A.none, over = false }, "attention")
  local run = type(model) == "table" and rawget(model, "recipe") and model or nil
  local encoder = encoder_of(common.model(model, "attention"))
  return (common.aside(encoder, function()
    return (require("weft.autograd").no_grad(function()
      return (require("weft.scope").scope(function()
        local pixels = pixels_of(encoder, run, picture)
        local weights = encoder:attention(pixels:unsqueeze(1), { layer = o.layer }):select(1, 1)  -- [heads, N, N]
        local patch = encoder.config.patch_size
        local rows, columns = math.floor(pixels:size(2) / patch), math.floor(pixels:size(3) / patch)
        local heads, n = weights:size(1), weights:size(2)
        local maps = weights:narrow(2, 1, 1):narrow(3, n - rows * columns + 1, rows * columns):reshape(heads, rows, columns):contiguous()
        if not o.over then return maps end
        local looks = require "weft.show.pixels"
        local image = require "weft.io.image"
        local heat = image.resize((looks.heat(maps:mean(1))), { pixels:size(2), pixels:size(3) })
        local base = (looks.of(pixels))
        local out = (base:to "float32" * 0.45 + heat:to "float32" * 0.55)
        return (out:clamp(0, 255):to "uint8")
      end))
    end))
  end))
end

return M
