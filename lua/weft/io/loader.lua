-- loader.lua: pictures decoded by threads ahead of the step. Lua plans, C executes.
local ffi = require "ffi"
local args = require "weft.args"
local image = require "weft.io.image"
local ops = require("weft.ops").functions
local scope = require("weft.scope").scope
local C = require("weft.core").lib

---@class weft.Loader
local Loader = {}
Loader.__index = Loader

local filters = { bicubic = C.WEFT_BICUBIC, bilinear = C.WEFT_BILINEAR }
local item_defaults = { path = args.required, crop = args.none, resize = args.none, filter = "bicubic",
  flip = false, window = args.none }

local function fill(item, c, i)
  local where = ("loader: picture %d"):format(i)
  local o = args.options(type(item) == "string" and { path = item } or item, item_defaults, where)
  if type(o.path) ~= "string" then
    args.raise("%s: path: a string is expected, got %s", where, args.typename(o.path))
  end
  c.path = o.path
  c.filter = filters[o.filter] or args.choice(o.filter, filters, where, "filter")
  c.flip = o.flip
  if type(o.resize) == "number" then
    c.resize_h = o.resize
  elseif o.resize then
    c.resize_h, c.resize_w = o.resize[1], o.resize[2]
  end
  if o.crop then
    c.crop_y, c.crop_x, c.crop_h, c.crop_w = o.crop[1] - 1, o.crop[2] - 1, o.crop[3], o.crop[4]
  end
  if o.window then
    c.window_y, c.window_x, c.window_h, c.window_w = o.window[1] - 1, o.window[2] - 1, o.window[3], o.window[4]
  end
end

---Plans a batch and returns its ticket at once. Each picture is a path or a table: path, crop = { row,
---column, height, width } (cut out first, counted from 1), resize = short edge or { height, width },
---filter, flip, window. What comes out larger or smaller than the loader's size is cut or padded around
---the middle; a window = { row, column, height, width } of that is enlarged to the loader's size.
---@param pictures (string|table)[]
---@return integer ticket
function Loader:submit(pictures)
  local n = #pictures
  local items = ffi.new("weft_plan_item[?]", n + 1)
  for i = 1, n do
    local item = pictures[i]
    if type(item) == "string" then item = { path = item, resize = self.resize } end
    fill(item, items[i - 1], i)
  end
  local ticket = tonumber(C.weft_loader_submit(self.handle, items, n))
  if ticket == 0 then args.fail() end
  return ticket
end

local function finished_there(self, ticket)
  local raw = ffi.new "weft_raw_batch[1]"
  args.check(C.weft_loader_take_raw(self.handle, ticket, raw))
  local place = { device = self.place.device }
  local bytes, plan, taps = args.wrap(raw[0].bytes):to(place), args.wrap(raw[0].plan):to(place), args.wrap(raw[0].taps):to(place)
  return (ops.pictures(bytes, plan, taps, self.table, self.height, self.width, tonumber(raw[0].rows)))
end

---Waits for a batch: float32 [n, 3, height, width], and what went wrong by position in the batch (a
---picture that could not be read is zero).
---With a device of its own the loader hands over bytes, and the pictures are resized and normalised there: the
---same values, in its dtype.
---@param ticket integer
---@return weft.Tensor pixels, table<integer, string> problems
function Loader:take(ticket)
  local pixels
  if self.place then pixels = scope(finished_there, self, ticket)
  else
    local t = C.weft_loader_take(self.handle, ticket)
    if t == nil then args.fail() end
    pixels = args.wrap(t)
  end
  local problems = {}
  for i = 1, pixels:size(1) do
    local message = C.weft_loader_message(self.handle, i - 1)
    if message ~= nil then problems[i] = ffi.string(message) end
  end
  return pixels, problems
end

---Seconds that take has waited so far.
---@return number
function Loader:waited() return C.weft_loader_waited(self.handle) end

---Bytes in the cache, and how many pictures came from it.
---@return integer bytes, integer hits
function Loader:cached()
  local bytes, hits = C.weft_loader_cache_used(self.handle), C.weft_loader_cache_hits(self.handle)
  return tonumber(bytes), tonumber(hits)
end

---Stops the threads. Batches that were not taken are dropped.
function Loader:close()
  if self.handle == nil then return end
  C.weft_loader_free(ffi.gc(self.handle, nil))
  self.handle = nil
end

local M = {}

---Starts a loader. Options: threads = 2, depth = 2 (batches under way), height and width of what
---comes out, resize (short edge for pictures planned by path alone), mean, std, cache = 0 (bytes of
---pictures kept at their final size; a plan with a crop of its own is not kept), orientation = true,
---alpha = "compose" or "drop", background = 255, max_pixels, place = { device, dtype } (a GPU that pictures go
---up to as bytes, but for those that the cache holds, and are resized and normalised on).
---    local l = loader.new { height = 224, width = 224, resize = 256 }
---    local pixels, problems = l:take(l:submit { "a.jpg", { path = "b.png", resize = 256, flip = true } })
---@param options table
---@return weft.Loader
function M.new(options)
  local o = args.options(options, { threads = 2, depth = 2, height = args.required,
    width = args.required, resize = args.none, mean = image.mean, std = image.std, cache = 0,
    orientation = true, alpha = "compose", background = 255, max_pixels = 0, place = args.none }, "loader")
  local decode = image.options({ orientation = o.orientation, alpha = o.alpha,
    background = o.background, max_pixels = o.max_pixels }, "loader")
  local handle = C.weft_loader_new(o.threads, o.depth, o.height, o.width, ffi.new("double[3]", o.mean),
    ffi.new("double[3]", o.std), decode, o.cache)
  if handle == nil then args.fail() end
  local self = setmetatable({ handle = ffi.gc(handle, C.weft_loader_free), resize = o.resize, height = o.height, width = o.width }, Loader)
  if o.place then
    args.check(C.weft_loader_raw(handle, true))
    self.place = o.place
    self.table = scope(function() return (args.wrap(C.weft_loader_table(handle)):to(o.place):keep()) end)
  end
  return self
end

return M
