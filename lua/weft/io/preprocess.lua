-- preprocess.lua: what preprocessor_config.json says is done to a picture before a model sees it. The same
-- rule for one picture in hand and for the loader's threads.
local args = require "weft.args"
local image = require "weft.io.image"
local json = require "weft.io.json"

---@class weft.Preprocess
---@field resize integer|integer[]|nil   short edge, or { height, width }
---@field filter string
---@field crop integer[]|nil             { height, width } out of the middle
---@field mean number[]  of what is taken from a picture in 0..1, with the rescale factor in it
---@field std number[]
local Preprocess = {}
Preprocess.__index = Preprocess

-- As the published DINOv2 models have it.
local defaults = {
  do_resize = true, size = { shortest_edge = 256 }, resample = 3, do_center_crop = true,
  crop_size = { height = 224, width = 224 }, do_rescale = true, rescale_factor = 1 / 255, do_normalize = true,
  image_mean = image.mean, image_std = image.std, do_convert_rgb = true,
}

-- Pillow's numbers for filters.
local filters = { [2] = "bilinear", [3] = "bicubic" }
local filter_names = { [0] = "nearest", "lanczos", "bilinear", "bicubic", "box", "hamming" }

local function whole(n) return type(n) == "number" and n >= 1 and n % 1 == 0 end

local function three(v, where, key)
  if type(v) == "number" then v = { v, v, v } end
  for i = 1, 3 do
    if type(v) ~= "table" or #v ~= 3 or type(v[i]) ~= "number" or v[i] ~= v[i] then
      args.raise("%s: %s: three numbers are expected", where, key)
    end
  end
  return { v[1], v[2], v[3] }
end

-- { height, width }, or a short edge as a number.
local function size_of(v, where, key, edge)
  if whole(v) then return edge and v or { v, v } end
  if type(v) == "table" then
    if whole(v.height) and whole(v.width) then return { v.height, v.width } end
    if edge and v.longest_edge ~= nil and v.longest_edge ~= json.null then
      args.raise("%s: %s: longest_edge is not computed here; shortest_edge, or height and width, are expected", where, key)
    end
    if edge and whole(v.shortest_edge) then return v.shortest_edge end
  end
  args.raise("%s: %s: %sheight and width are expected, as whole numbers from 1", where, key,
    edge and "shortest_edge, or " or "")
end

local M = {}

---The rule that a table of preprocessor_config.json's keys means. What is left out is as in DINOv2's own.
---@param config table
---@param where? string  what an error names
---@return weft.Preprocess
function M.new(config, where)
  where = where or "preprocess"
  if type(config) ~= "table" then args.raise("%s: a table is expected, got %s", where, args.typename(config)) end
  local o = {}
  for key, v in pairs(defaults) do o[key] = v end
  for key, v in pairs(config) do
    if v == json.null then v = nil end
    if defaults[key] ~= nil then
      if v ~= nil then o[key] = v end
    elseif type(key) == "string" and key:find "^do_" and v then
      args.raise("%s: %s is set, and is not computed here", where, key)
    end
  end
  for key in pairs(defaults) do
    if key:find "^do_" and type(o[key]) ~= "boolean" then args.raise("%s: %s: true or false is expected", where, key) end
  end
  local self = setmetatable({ filter = "bicubic" }, Preprocess)
  if o.do_resize then
    self.resize = size_of(o.size, where, "size", true)
    self.filter = filters[o.resample]
    if not self.filter then
      args.raise("%s: resample %s (%s): 2 (bilinear) and 3 (bicubic) are computed here", where, tostring(o.resample),
        filter_names[o.resample] or "unknown")
    end
  end
  if o.do_center_crop then self.crop = size_of(o.crop_size, where, "crop_size", false) end
  local factor = o.do_rescale and o.rescale_factor or 1
  if type(factor) ~= "number" or not (factor > 0 and factor < math.huge) then
    args.raise("%s: rescale_factor: a number above 0 is expected, got %s", where, tostring(factor))
  end
  local mean, std = { 0, 0, 0 }, { 1, 1, 1 }
  if o.do_normalize then mean, std = three(o.image_mean, where, "image_mean"), three(o.image_std, where, "image_std") end
  -- x f for x / 255: (x f - m) / s = (x / 255 - m / g) / (s / g) with g = 255 f
  local g = factor * 255
  if math.abs(g - 1) < 1e-9 then g = 1 end
  for i = 1, 3 do
    if not (std[i] > 0) then args.raise("%s: image_std: numbers above 0 are expected, got %s", where, tostring(std[i])) end
    mean[i], std[i] = mean[i] / g, std[i] / g
  end
  self.mean, self.std = mean, std
  return self
end

---The rule of a model directory: of its preprocessor_config.json, or DINOv2's own where there is none.
---    local rule = preprocess.read "facebook-dinov2-base"
---    local pixels = rule:apply(image.load "dog.png"):unsqueeze(1)
---@param dir string
---@return weft.Preprocess rule, boolean found
function M.read(dir)
  local path = dir .. "/preprocessor_config.json"
  if not require("weft.files").exists(path) then return M.new {}, false end
  local config, message = json.read(path)
  if config == nil then args.raise("%s", message) end
  return M.new(config, path), true
end

---How pictures are decoded where this rule comes from: alpha dropped, EXIF's orientation not looked at.
M.decoding = { alpha = "drop", orientation = false }

---A picture as a model wants it: float32 [3, height, width].
---@param picture weft.Tensor  uint8 [height, width, 3]
function Preprocess:apply(picture)
  local made = {}
  local function step(p)
    made[#made + 1] = p
    return p
  end
  local p = picture
  if self.resize then p = step(image.resize(p, self.resize, self.filter)) end
  if self.crop then p = step(image.center_crop(p, self.crop[1], self.crop[2])) end
  local pixels = image.normalize(p, { mean = self.mean, std = self.std })
  for _, t in ipairs(made) do t:free() end
  return pixels
end

---{ height, width } that every picture comes to; nil where it depends on the picture.
function Preprocess:size() return self.crop or type(self.resize) == "table" and self.resize or nil end

---A loader whose threads follow this rule, and the plan of one path. Only where size() is known.
---@param options? table  what else the loader takes: threads, depth, ...
function Preprocess:loader(options)
  local size = assert(self:size(), "pictures of this rule differ in size")
  local o = { height = size[1], width = size[2], mean = self.mean, std = self.std }
  for key, v in pairs(M.decoding) do o[key] = v end
  for key, v in pairs(options or {}) do o[key] = v end
  local loader = require("weft.io.loader").new(o)
  return loader, function(path) return { path = path, resize = self.resize, filter = self.filter } end
end

---The rule in words.
function Preprocess:describe()
  local parts = {}
  if self.resize then
    local edge = type(self.resize) == "table" and ("%d x %d"):format(self.resize[1], self.resize[2]) or tostring(self.resize)
    parts[1] = ("resize %s %s antialiased"):format(edge, self.filter)
  end
  if self.crop then
    local h, w = self.crop[1], self.crop[2]
    local text = h == w and ("crop %d"):format(h) or ("crop %d x %d"):format(h, w)
    if type(self.resize) == "number" then
      text = text .. (": keeps %.0f %% of a square picture"):format(100 * math.min(1, h / self.resize) * math.min(1, w / self.resize))
    end
    parts[#parts + 1] = text
  end
  return #parts > 0 and table.concat(parts, ", ") or "pictures as they are"
end
Preprocess.__tostring = Preprocess.describe

---All that decides what a picture becomes, as one line: equal lines, equal pictures.
function Preprocess:text()
  local function list(v)
    local out = {}
    for i, x in ipairs(v) do out[i] = ("%.6g"):format(x) end
    return table.concat(out, " ")
  end
  return ("%s; mean %s; std %s"):format(self:describe(), list(self.mean), list(self.std))
end

---16 hexadecimal digits over text(): what runs and adapters keep of it.
function Preprocess:hash() return (require("weft.files").hash(self:text())) end

local function floats(list)
  local out = {}
  for i, v in ipairs(list) do out[i] = json.float(v) end
  return json.array(out)
end

---preprocessor_config.json's keys for a rule in our terms.
---@param o table  resize (short edge, or { height, width }), size (crop), mean, std
function M.to_file(o)
  local resize = o.resize
  local size = type(resize) == "table" and { height = resize[1], width = resize[2] } or { shortest_edge = resize }
  return {
    image_processor_type = "BitImageProcessor", do_convert_rgb = true, do_resize = true, size = size,
    resample = 3, do_center_crop = true, crop_size = { height = o.size, width = o.size }, do_rescale = true,
    rescale_factor = 1 / 255, do_normalize = true, image_mean = floats(o.mean), image_std = floats(o.std),
  }
end

---The rule by which a run prepares its pictures for evaluation.
---@param o table  resize (short edge), fit ("stretch": both sides to size), size (crop), mean, std
---@return weft.Preprocess
function M.of_run(o)
  local size = o.fit == "stretch" and { height = o.size, width = o.size } or { shortest_edge = o.resize }
  return (M.new { size = size, crop_size = o.size, image_mean = o.mean, image_std = o.std })
end

return M
