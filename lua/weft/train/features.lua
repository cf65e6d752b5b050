-- features.lua: what a frozen encoder makes of a picture, computed once: held in memory up to a
-- budget, then in files.
local autograd = require "weft.autograd"
local files = require "weft.files"

local Cache = {}
Cache.__index = Cache

---options: memory (MiB), disk (MiB), dir (folder for what does not fit in memory).
function Cache.new(options)
  return setmetatable({ budget = options.memory * 2 ^ 20, disk_budget = options.disk * 2 ^ 20, dir = options.dir,
    held = {}, stored = {}, bytes = 0, disk_bytes = 0, computed = 0, served = 0, seconds = 0 }, Cache)
end

local function path_of(self, id) return ("%s/%s.safetensors"):format(self.dir, tostring(id)) end

function Cache:has(id) return self.held[id] ~= nil or self.stored[id] ~= nil end

local function put(self, id, t)
  local n = t:numel() * 4
  if self.bytes + n <= self.budget then
    self.held[id] = t:detach():clone():keep()
    self.bytes = self.bytes + n
  elseif self.dir and self.disk_bytes + n <= self.disk_budget then
    if self.disk_bytes == 0 then
      files.remove_dir(self.dir)  -- of a run before
      local ok, message = files.make_dirs(self.dir)
      if not ok then error("features: " .. message, 0) end
    end
    local ok, message = require("weft.io.safetensors").save(path_of(self, id), { features = t:detach() })
    if not ok then error("features: " .. message, 0) end
    self.stored[id] = true
    self.disk_bytes = self.disk_bytes + n
  end
end

local function get(self, id)
  if self.held[id] then return self.held[id] end
  return (assert(require("weft.io.safetensors").load(path_of(self, id))).features:to(self.device or "cpu"))
end

-- Features of some rows. Which pictures go together depends on what is known already, so their bits
-- must not: where a picture's differ alone and in a batch (some products on a GPU), each goes alone.
local function fresh_of(self, compute, rows)
  local weft = require "weft"
  local together = not self.alone and compute(rows) or nil
  if self.alone == nil and #rows > 1 then
    local first = compute { rows[1] }
    self.alone = weft.ne(first:select(1, 1), together:select(1, 1)):to("int64"):sum():item() > 0
  end
  if not self.alone then return together end
  local parts = {}
  for k, row in ipairs(rows) do parts[k] = compute { row } end
  return (weft.cat(parts, 1))
end

---Features of a batch: what is known from here, the rest by compute(rows), once, and remembered.
---@param ids any[]  picture ids
---@param compute function  (rows: positions in ids, from 1) -> tensor [#rows, ...]
function Cache:batch(ids, compute)
  local weft = require "weft"
  local missing, parts = {}, {}
  for i, id in ipairs(ids) do
    if not self:has(id) then missing[#missing + 1] = i end
  end
  self.served = self.served + #ids - #missing
  local fresh
  if #missing > 0 then
    local before = files.clock()
    fresh = autograd.no_grad(fresh_of, self, compute, missing)
    self.seconds = self.seconds + files.clock() - before
    self.device = fresh.device
    self.computed = self.computed + #missing
    for k, i in ipairs(missing) do
      parts[i] = fresh:select(1, k)
      put(self, ids[i], parts[i])
    end
    -- rows side by side, as those that were kept: sums over rows that lie apart are rounded differently
    if #missing == #ids then return (fresh:contiguous()) end
  end
  for i, id in ipairs(ids) do parts[i] = parts[i] or get(self, id) end
  return (weft.stack(parts, 1))
end

---What keeping costs and saves, in words, measured both ways; nil where nothing was computed.
function Cache:report()
  if self.computed == 0 then return nil end
  local fetch, seen, kept = 0, 0, 0
  for _, list in ipairs { self.held, self.stored } do
    local n = 0
    for id in pairs(list) do
      kept, n = kept + 1, n + 1
      if n <= 8 then
        local before = files.clock()
        get(self, id)
        fetch, seen = fetch + files.clock() - before, seen + 1
      end
    end
  end
  local compute = self.seconds / self.computed
  if kept == 0 then return ("features: none of %d pictures fits into what features.memory and features.disk allow"):format(self.computed) end
  fetch = fetch / seen
  return ("features: a picture takes %.1f ms in the encoder, %.1f ms as it was kept; %d of %d are kept (%.1f MiB in memory, %.1f on disk), "
    .. "which saves about %.1f s an epoch"):format(1000 * compute, 1000 * fetch, kept, self.computed, self.bytes / 2 ^ 20,
    self.disk_bytes / 2 ^ 20, kept * math.max(0, compute - fetch))
end

---Drops everything (the encoder is about to change).
function Cache:clear()
  for _, t in pairs(self.held) do t:free() end
  if next(self.stored) then files.remove_dir(self.dir) end
  self.held, self.stored, self.bytes, self.disk_bytes = {}, {}, 0, 0
end

return Cache
