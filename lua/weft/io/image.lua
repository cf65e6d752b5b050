-- image.lua: pictures as uint8 tensors [height, width, 3], and their way to an encoder's input.
local ffi = require "ffi"
local args = require "weft.args"
local C = require("weft.core").lib

local image = {}

local filters = { bicubic = C.WEFT_BICUBIC, bilinear = C.WEFT_BILINEAR }

local function result(handle)
  if handle == nil then args.fail() end
  return args.wrap(handle)
end

local function filter_of(name, where)
  return filters[name] or args.choice(name, filters, where, "filter")
end

-- A colour: one number for grey, or three, each 0..255.
local function color_of(v, where)
  local c = type(v) == "number" and { v, v, v } or v
  if type(c) ~= "table" or #c ~= 3 then
    args.raise("%s: a colour is one number or three, 0..255; got %s", where, args.typename(v))
  end
  for i = 1, 3 do
    if type(c[i]) ~= "number" or c[i] < 0 or c[i] > 255 then
      args.raise("%s: a colour is one number or three, 0..255; got %s", where, args.typename(c[i]))
    end
  end
  return ffi.new("uint8_t[3]", c)
end
local decode_defaults = { orientation = true, alpha = "compose", background = 255, max_pixels = 0 }
local alphas = { compose = false, drop = true }

---Decoding options as C takes them.
function image.options(options, where)
  local o = args.options(options, decode_defaults, where)
  local drop = alphas[o.alpha]
  if drop == nil then args.choice(o.alpha, alphas, where, "alpha") end
  local background = color_of(o.background, where)
  return ffi.new("weft_image_options", not o.orientation, drop, background, o.max_pixels)
end

---Reads a PNG, JPEG or BMP file. Grey becomes RGB; 16-bit samples keep their high byte. Options:
---orientation = true (turn as EXIF says), alpha = "compose" (onto background = 255, a grey or three
---numbers) or "drop", max_pixels (about 179 million).
---    local picture = assert(image.load("dog.jpg", { alpha = "drop" }))
---@param path string
---@param options table?
---@return weft.Tensor?, string? message
function image.load(path, options)
  local handle = C.weft_image_load(path, image.options(options, "image.load"))
  if handle == nil then return nil, ffi.string(C.weft_error()) end
  return args.wrap(handle)
end

---The same from a string of bytes.
---@param bytes string
---@param options table?
---@return weft.Tensor?, string? message
function image.decode(bytes, options)
  local handle = C.weft_image_decode(bytes, #bytes, image.options(options, "image.decode"))
  if handle == nil then return nil, ffi.string(C.weft_error()) end
  return args.wrap(handle)
end

---Resizes, antialiased, as Pillow does. size = { height, width }, or one number for the short edge.
---    image.resize(picture, 256)                        -- keeps the proportions
---    image.resize(picture, { 224, 224 }, "bilinear")
---@param picture weft.Tensor
---@param size integer|integer[]
---@param filter string?   "bicubic" (default) or "bilinear"
---@return weft.Tensor
function image.resize(picture, size, filter)
  local p, f = args.tensor(picture, "resize", "picture"), filter_of(filter or "bicubic", "resize")
  if type(size) == "number" then return result(C.weft_image_resize_shortest(p, size, f)) end
  if type(size) ~= "table" or #size ~= 2 then
    args.raise("resize: size is a number or { height, width }")
  end
  return result(C.weft_image_resize(p, size[1], size[2], f))
end

---The same picture with its longer side of at most `side` pixels.
---@param picture weft.Tensor
---@param side integer
---@return weft.Tensor
function image.within(picture, side)
  local h, w = picture.shape[1], picture.shape[2]
  local scale = math.min(1, side / math.max(h, w))
  return image.resize(picture, { math.max(1, math.floor(h * scale)), math.max(1, math.floor(w * scale)) })
end

---Cuts out height x width from row y and column x (both count from 1); outside is black.
---@param picture weft.Tensor
---@param y integer
---@param x integer
---@param height integer
---@param width integer
---@return weft.Tensor
function image.crop(picture, y, x, height, width)
  return result(C.weft_image_crop(args.tensor(picture, "crop", "picture"), y - 1, x - 1, height, width))
end

---Cuts the middle out; an odd remainder leaves the larger part below and to the right.
---@param picture weft.Tensor
---@param height integer
---@param width integer?   height, if not given
---@return weft.Tensor
function image.center_crop(picture, height, width)
  local p = args.tensor(picture, "center_crop", "picture")
  return result(C.weft_image_center_crop(p, height, width or height))
end

-- Of the pictures that common encoders were trained on.
image.mean, image.std = { 0.485, 0.456, 0.406 }, { 0.229, 0.224, 0.225 }

---(picture / 255 - mean) / std as float32 [3, height, width]. Options: mean, std, flip = false.
---@param picture weft.Tensor
---@param options { mean: number[]?, std: number[]?, flip: boolean? }?
---@return weft.Tensor
function image.normalize(picture, options)
  local o = args.options(options, { mean = image.mean, std = image.std, flip = false }, "normalize")
  for _, name in ipairs { "mean", "std" } do
    if type(o[name]) ~= "table" or #o[name] ~= 3 then
      args.raise("normalize: %s: three numbers are expected", name)
    end
  end
  return result(C.weft_image_normalize(args.tensor(picture, "normalize", "picture"),
    ffi.new("double[3]", o.mean), ffi.new("double[3]", o.std), o.flip))
end

---A canvas of one colour.
---@param height integer
---@param width integer
---@param color number|number[]?   white, if not given
---@return weft.Tensor
function image.canvas(height, width, color)
  local shape = ffi.new("int64_t[3]", { height, width, 3 })
  local t = result(C.weft_empty(shape, 3, C.WEFT_UINT8, C.WEFT_CPU))
  local c, p, n = color_of(color or 255, "canvas"), ffi.cast("uint8_t *", t.p.v.data), height * width
  for i = 0, n - 1 do p[3 * i], p[3 * i + 1], p[3 * i + 2] = c[0], c[1], c[2] end
  return t
end

---Pastes a picture at row y, column x of a canvas; what sticks out is cut off.
---@param canvas weft.Tensor
---@param picture weft.Tensor
---@param y integer
---@param x integer
function image.paste(canvas, picture, y, x)
  args.check(C.weft_image_paste(args.tensor(canvas, "paste", "canvas"),
    args.tensor(picture, "paste", "picture"), y - 1, x - 1))
end

---Writes ASCII text; a character takes 6 x 8 pixels, times scale. Options: color = 0, scale = 1.
---@param canvas weft.Tensor
---@param y integer
---@param x integer
---@param text string
---@param options { color: number|number[]?, scale: integer? }?
function image.text(canvas, y, x, text, options)
  local o = args.options(options, { color = 0, scale = 1 }, "text")
  args.check(C.weft_image_text(args.tensor(canvas, "text", "canvas"), y - 1, x - 1, text, #text,
    o.scale, color_of(o.color, "text")))
end

---Breaks text into lines of at most `columns` characters, at spaces where there are any.
---@param text string
---@param columns integer
---@return string[]
function image.wrap(text, columns)
  local lines, line = {}, ""
  for word in text:gmatch "%S+" do
    while #word > columns do
      if line ~= "" then lines[#lines + 1], line = line, "" end
      lines[#lines + 1], word = word:sub(1, columns), word:sub(columns + 1)
    end
    if line == "" then line = word
    elseif #line + 1 + #word <= columns then line = line .. " " .. word
    else lines[#lines + 1], line = line, word end
  end
  if line ~= "" then lines[#lines + 1] = line end
  return lines
end

---A contact sheet: pictures in rows, each fitted into a square cell, with its captions below.
---    image.save("sheet.png", image.sheet(pictures, captions, { columns = 4, cell = 224 }))
---@param pictures weft.Tensor[]
---@param captions string[]?
---@param options { columns: integer?, cell: integer?, lines: integer?, gap: integer? }?
---@return weft.Tensor
function image.sheet(pictures, captions, options)
  local o = args.options(options, { columns = 4, cell = 224, lines = 4, gap = 8 }, "sheet")
  captions = captions or {}
  if #pictures == 0 then args.raise("sheet: at least one picture is expected") end
  local text_height = next(captions) and o.lines * 10 + 4 or 0
  local columns = math.min(o.columns, #pictures)
  local rows = math.ceil(#pictures / columns)
  local step_y, step_x = o.cell + text_height + o.gap, o.cell + o.gap
  local canvas = image.canvas(rows * step_y + o.gap, columns * step_x + o.gap)
  for i, picture in ipairs(pictures) do
    local y = math.floor((i - 1) / columns) * step_y + o.gap + 1
    local x = (i - 1) % columns * step_x + o.gap + 1
    local view = args.tensor(picture, "sheet", "pictures").v
    local h, w = tonumber(view.shape[0]), tonumber(view.shape[1])
    local scale = o.cell / math.max(h, w)
    local size = { math.max(1, math.floor(h * scale)), math.max(1, math.floor(w * scale)) }
    local small = image.resize(picture, size)
    image.paste(canvas, small, y, x)
    small:free()
    local lines = image.wrap(captions[i] or "", math.floor(o.cell / 6))
    for k = 1, math.min(#lines, o.lines) do
      image.text(canvas, y + o.cell + 4 + (k - 1) * 10, x, lines[k])
    end
  end
  return canvas
end

---Writes a picture as PNG; the file is replaced whole or not at all.
---@param path string
---@param picture weft.Tensor
---@return true?, string? message
function image.save(path, picture)
  local status = C.weft_image_write_png(path, args.tensor(picture, "image.save", "picture"))
  if status == C.WEFT_OK then return true end
  if status == C.WEFT_EINVAL then args.raise("image.save: %s", ffi.string(C.weft_error())) end
  return nil, ffi.string(C.weft_error())
end

---A picture as the bytes of a PNG.
---@param picture weft.Tensor
---@return string
function image.png(picture)
  local files = require "weft.files"
  return files.temporary(function(dir)
    local path = dir .. "/picture.png"
    local ok, message = image.save(path, picture)
    if not ok then error(message, 0) end
    return assert(files.read(path))
  end)
end

return image
