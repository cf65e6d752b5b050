-- features.lua: what a frozen encoder makes of a picture, computed once: held in memory up to a
-- budget, then in files.
local autograd = require "weft.autograd"
local files = require "weft.files"

local Cache = {}
Cache.__index = Cache

---options: memory (MiB), disk (MiB), dir (folder for what does not fit in memory).
function Cache.new(options)
  return setmetatable({ budget = options.memory * 2 ^ 20, disk_budget = options.disk * 2 ^ 20, dir = options.dir,
    held = {}, stored = {}, bytes = 0, disk_bytes = 0, computed = 0, served = 0 }, Cache)
end

local function path_of(self, id) return ("%s/%s.safetensors"):format(self.dir, tostring(id)) end

function Cache:has(id) return self.held[id] ~= nil or self.stored[id] ~= nil end

---True when every picture of a batch is here: its pixels need not be decoded.
function Cache:covers(ids)
  for _, id in ipairs(ids) do
    if not self:has(id) then return false end
  end
  return #ids > 0
end

local function put(self, id, t)
  local n = t:numel() * 4
  if self.bytes + n <= self.budget then
    self.held[id] = t:detach():clone():keep()
    self.bytes = self.bytes + n
  elseif self.dir and self.disk_bytes + n <= self.disk_budget then
    if self.disk_bytes == 0 then assert(files.make_dirs(self.dir)) end
    assert(require("weft.io.safetensors").save(path_of(self, id), { features = t:detach() }))
    self.stored[id] = true
    self.disk_bytes = self.disk_bytes + n
  end
end

local function get(self, id)
  if self.held[id] then return self.held[id] end
  return assert(require("weft.io.safetensors").load(path_of(self, id))).features
end

---Features of a batch: from here where they are known, else by compute(), and remembered.
---@param ids any[]  picture ids
---@param compute function  () -> tensor [B, ...]
function Cache:batch(ids, compute)
  local weft = require "weft"
  if self:covers(ids) then
    self.served = self.served + #ids
    local parts = {}
    for i, id in ipairs(ids) do parts[i] = get(self, id) end
    return (weft.stack(parts, 1))
  end
  local all = autograd.no_grad(compute)
  for i, id in ipairs(ids) do
    if not self:has(id) then
      put(self, id, all:select(1, i))
      self.computed = self.computed + 1
    end
  end
  return all
end

---Drops everything (the encoder is about to change).
function Cache:clear()
  for _, t in pairs(self.held) do t:free() end
  for id in pairs(self.stored) do files.remove(path_of(self, id)) end
  self.held, self.stored, self.bytes, self.disk_bytes = {}, {}, 0, 0
end

return Cache
