-- safetensors.lua: reading and writing safetensors files. Tensors of a file share its pages: opening
-- costs nothing, and writing to such a tensor never changes the file.
local ffi = require "ffi"
local args = require "weft.args"
local C = require("weft.core").lib

local safetensors = {}

local function failure() return nil, ffi.string(C.weft_error()) end

---A file that is open: `names`, `metadata`, and its tensors on demand.
---@class weft.SafetensorsFile
---@field path string
---@field names string[]  in the order of the file
---@field metadata table<string, string>
local File = {}
File.__index = File

local function position(self, name, where)
  if self.handle == nil then args.raise("%s: %s is closed", where, self.path) end
  if type(name) ~= "string" then
    args.raise("%s: a tensor's name is expected, got %s", where, args.typename(name))
  end
  local i = C.weft_safetensors_find(self.handle, name)
  if i < 0 then return nil end
  return i
end

---Shape, dtype (as the file spells it) and bytes of a tensor, or nil when there is none.
---@param name string
---@return { shape: integer[], dtype: string, nbytes: integer }?
function File:info(name)
  local i = position(self, name, "info")
  if not i then return nil end
  local shape, sizes = {}, C.weft_safetensors_shape(self.handle, i)
  for d = 1, C.weft_safetensors_ndim(self.handle, i) do shape[d] = tonumber(sizes[d - 1]) end
  return { shape = shape, dtype = ffi.string(C.weft_safetensors_dtype_name(self.handle, i)),
    nbytes = tonumber(C.weft_safetensors_nbytes(self.handle, i)) }
end

---One tensor of the file.
---@param name string
---@return weft.Tensor?, string? message
function File:tensor(name)
  local i = position(self, name, "tensor")
  if not i then
    local near = args.suggest(name, { unpack(self.names, 1, 200) })
    return nil, ("%s: no tensor '%s'%s"):format(self.path, name, near)
  end
  local t = C.weft_safetensors_tensor(self.handle, i)
  if t == nil then return failure() end
  return args.wrap(t)
end

---Closes the file. Its tensors stay valid.
function File:close()
  if self.handle == nil then return end
  C.weft_safetensors_close(ffi.gc(self.handle, nil))
  self.handle = nil
end

---Opens a file without reading its tensors.
---    local f = assert(safetensors.open "model.safetensors")
---    print(#f.names, f:info(f.names[1]).dtype)
---@param path string
---@return weft.SafetensorsFile?, string? message
function safetensors.open(path)
  if type(path) ~= "string" then
    args.raise("safetensors.open: a path is expected, got %s", args.typename(path))
  end
  local handle = C.weft_safetensors_open(path)
  if handle == nil then return failure() end
  handle = ffi.gc(handle, C.weft_safetensors_close)
  local names, metadata = {}, {}
  for i = 1, tonumber(C.weft_safetensors_count(handle)) do
    names[i] = ffi.string(C.weft_safetensors_name(handle, i - 1))
  end
  for i = 0, tonumber(C.weft_safetensors_n_meta(handle)) - 1 do
    metadata[ffi.string(C.weft_safetensors_meta_key(handle, i))] =
      ffi.string(C.weft_safetensors_meta_value(handle, i))
  end
  return setmetatable({ path = path, handle = handle, names = names, metadata = metadata }, File)
end

---Every tensor of a file by name, and its metadata.
---    local weights, metadata = assert(safetensors.load "adapter_model.safetensors")
---@param path string
---@return table<string, weft.Tensor>? tensors, table<string, string>|string metadata  or a message
function safetensors.load(path)
  local file, message = safetensors.open(path)
  if not file then return nil, message end
  local tensors = {}
  for _, name in ipairs(file.names) do
    tensors[name], message = file:tensor(name)
    if not tensors[name] then
      file:close()
      return nil, message
    end
  end
  file:close()
  return tensors, file.metadata
end

local function sorted_keys(t, what)
  local keys = {}
  for k in pairs(t) do
    if type(k) ~= "string" or k:find("%z") then
      args.raise("safetensors.save: a name of %s is expected, got %s", what, args.typename(k))
    end
    keys[#keys + 1] = k
  end
  table.sort(keys)
  return keys
end

---Writes tensors, and metadata if given, as Hugging Face's writer lays them out. The file is replaced
---whole or not at all. What lies on a GPU is copied from there.
---@param path string
---@param tensors table<string, weft.Tensor>
---@param metadata table<string, string>?
---@return true?, string? message
function safetensors.save(path, tensors, metadata)
  if type(path) ~= "string" then
    args.raise("safetensors.save: a path is expected, got %s", args.typename(path))
  end
  if type(tensors) ~= "table" then
    args.raise("safetensors.save: a table of tensors is expected, got %s", args.typename(tensors))
  end
  local names, keys = sorted_keys(tensors, "tensors"), sorted_keys(metadata or {}, "metadata")
  local near = {}
  local c_names = ffi.new("const char *[?]", #names + 1)
  local c_tensors = ffi.new("weft_tensor *[?]", #names + 1)
  local c_keys = ffi.new("const char *[?]", #keys + 1)
  local c_values = ffi.new("const char *[?]", #keys + 1)
  for i, name in ipairs(names) do
    c_names[i - 1] = name
    local t = tensors[name]
    c_tensors[i - 1] = args.tensor(t, "safetensors.save", name)
    if t.device ~= "cpu" and t.device ~= "meta" then
      near[#near + 1] = t:detach():to "cpu"
      c_tensors[i - 1] = near[#near].p
    end
  end
  for i, key in ipairs(keys) do
    local value = metadata[key]
    if type(value) ~= "string" or value:find("%z") then
      args.raise("safetensors.save: metadata '%s': a string is expected, got %s", key, args.typename(value))
    end
    c_keys[i - 1], c_values[i - 1] = key, value
  end
  local status = C.weft_safetensors_write(path, #names, c_names, c_tensors, #keys, c_keys, c_values)
  for _, t in ipairs(near) do t:free() end
  if status == C.WEFT_OK then return true end
  if status == C.WEFT_EIO or status == C.WEFT_ENOMEM then return failure() end
  args.raise("safetensors.save: %s", ffi.string(C.weft_error()))
end

return safetensors
