-- weft.io: files. load and save choose by the file's ending; the parts load when first used.
local args = require "weft.args"

local M = {}

local parts = { json = true, safetensors = true, tokenizer = true, image = true, loader = true,
  preprocess = true, hub = true, fetch = true }

local function ending(path, where)
  if type(path) ~= "string" then
    args.raise("%s: a path is expected, got %s", where, args.typename(path))
  end
  return (path:match "%.(%w+)$" or ""):lower()
end

---Reads a file: .safetensors (tensors by name, metadata), .json (a value), .png .jpg .jpeg .bmp (a
---uint8 tensor [height, width, 3]).
---    local weights, metadata = assert(weft.load "model.safetensors")
---@param path string
---@return any value, any metadata   nil and a message when the file cannot be read
function M.load(path)
  local kind = ending(path, "load")
  local value, extra
  if kind == "safetensors" then
    value, extra = M.safetensors.load(path)
  elseif kind == "json" then
    value, extra = M.json.read(path)
  elseif kind == "png" or kind == "jpg" or kind == "jpeg" or kind == "bmp" then
    value, extra = M.image.load(path)
  else
    args.raise("load: %s: .safetensors, .json, .png, .jpg or .bmp is expected", path)
  end
  return value, extra
end

---Writes a file: .safetensors from tensors by name (and metadata), .json from a value, .png from a
---picture. The file is replaced whole or not at all.
---@param path string
---@param value any
---@param metadata table<string, string>?
---@return true?, string? message
function M.save(path, value, metadata)
  local kind = ending(path, "save")
  local ok, message
  if kind == "safetensors" then
    ok, message = M.safetensors.save(path, value, metadata)
  elseif kind == "json" then
    ok, message = M.json.write(path, value)
  elseif kind == "png" then
    ok, message = M.image.save(path, value)
  else
    args.raise("save: %s: .safetensors, .json or .png is expected", path)
  end
  return ok, message
end

return setmetatable(M, { names = parts, __index = function(t, key)
  if not parts[key] then return nil end
  local part = require("weft.io." .. key)
  rawset(t, key, part)
  return part
end })
