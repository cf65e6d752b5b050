-- captioned.lua: captioned pictures as batches: deterministic order by seed and epoch, pictures
-- decoded ahead of the step, damaged ones skipped, counted and named.
local A = require "weft.args"
local files = require "weft.files"
local random = require "weft.random"
local ops = require("weft.ops").functions
local create = require("weft.tensor").create

local Dataset = {}
Dataset.__index = Dataset

---@param rows table[]  { path, name, caption, image_id, caption_id, ids }
---@param options table  size (pixels), resize (short edge), length (caption tokens), pad, threads, cache (MiB), flip
function Dataset.new(rows, options)
  return setmetatable({ rows = rows, options = options, damaged = {} }, Dataset)
end

function Dataset:size() return #self.rows end
function Dataset:count_batches(batch) return math.floor(#self.rows / batch) end

local function loader(self)
  if not self.loader_ then
    local o = self.options
    self.loader_ = require("weft.io.loader").new { height = o.size, width = o.size, resize = o.resize, threads = o.threads,
      depth = 3, cache = o.cache * 2 ^ 20, mean = o.mean, std = o.std }
  end
  return self.loader_
end

---Order of the rows in an epoch: a permutation keyed by seed and epoch alone, 1-based.
function Dataset:order(seed, epoch)
  local p = ops.randperm(#self.rows, "cpu", { key = random.hash("data order", seed), counter = 0ULL + epoch })
  local data, out = p:data(), {}
  for i = 1, #self.rows do out[i] = tonumber(data[i - 1]) + 1 end
  p:free()
  return out
end

---Batches of an epoch as lists of rows: full ones only, a picture at most once in each.
function Dataset:plan(seed, epoch, batch)
  local waiting, batches = self:order(seed, epoch), {}
  while #waiting >= batch do
    local list, seen, rest = {}, {}, {}
    for _, i in ipairs(waiting) do
      local id = self.rows[i].image_id
      if #list < batch and not seen[id] then
        list[#list + 1], seen[id] = i, true
      else
        rest[#rest + 1] = i
      end
    end
    if #list < batch then break end
    batches[#batches + 1], waiting = list, rest
  end
  return batches
end

---Hash of the rows and of the first epochs' order, for result.json.
function Dataset:order_hash(seed)
  local parts = {}
  for _, r in ipairs(self.rows) do parts[#parts + 1] = r.name .. "\t" .. r.caption end
  for epoch = 1, 2 do parts[#parts + 1] = table.concat(self:order(seed, epoch), ",") end
  return files.hash(table.concat(parts, "\n"))
end

-- Token ids as int64 [B, L] padded to the right; mask is true where a token stands.
local function tokens(self, indices)
  local o = self.options
  local B, L = #indices, o.length
  local ids, mask = create.full { B, L, value = o.pad, dtype = "int64" }, create.zeros { B, L, dtype = "bool" }
  local p, m, count = ids:data(), mask:data(), 0
  for b, i in ipairs(indices) do
    local row = self.rows[i].ids
    for k = 1, #row do
      p[(b - 1) * L + k - 1] = row[k]
      m[(b - 1) * L + k - 1] = 1
    end
    count = count + #row - 1
  end
  return ids, mask, count
end

local function describe(self, indices)
  local batch = { indices = indices, image_ids = {}, caption_ids = {}, captions = {}, paths = {} }
  for b, i in ipairs(indices) do
    local r = self.rows[i]
    batch.image_ids[b], batch.caption_ids[b], batch.captions[b], batch.paths[b] = r.image_id, r.caption_id, r.caption, r.path
  end
  batch.ids, batch.mask, batch.tokens = tokens(self, indices)
  return batch
end

local function submit(self, indices, flips)
  local o, plan = self.options, {}
  for b, i in ipairs(indices) do
    plan[b] = { path = self.rows[i].path, resize = o.resize, flip = flips and flips[b] or false }
  end
  return (loader(self):submit(plan))
end

-- A damaged picture leaves its batch; its place is taken by nothing.
local function drop_damaged(self, batch, problems)
  local bad = false
  for b, message in pairs(problems) do
    bad = true
    local name = self.rows[batch.indices[b]].name
    if not self.damaged[name] then
      self.damaged[name] = message
      self.damaged[#self.damaged + 1] = name
      if self.on_damage then self.on_damage(name, message) end
    end
  end
  if not bad then return batch end
  local kept, places = {}, {}
  for b, i in ipairs(batch.indices) do
    if not problems[b] then
      kept[#kept + 1] = i
      places[#places + 1] = b - 1
    end
  end
  if #kept == 0 then return nil end
  local again = describe(self, kept)
  local index = create.tensor(places, { dtype = "int64" })
  again.pixels = ops.index_select(batch.pixels, index, 1)
  return again
end

---One batch of given rows, at once: what evaluation and checks use.
function Dataset:batch_of(indices, with_pixels)
  local batch = describe(self, indices)
  if with_pixels ~= false then
    local problems
    batch.pixels, problems = loader(self):take(submit(self, indices))
    batch = drop_damaged(self, batch, problems) or A.raise("no picture of this batch can be read: %s", batch.paths[1])
  end
  batch.micro, batch.token_share = 1, 1
  return batch
end

---Reads an epoch from a position on, pictures decoded ahead.
---@param o table  epoch, position (batches already taken), batch, accumulate, limit, seed, covered(ids)
---@return function next  the next batch, or nil
function Dataset:reader(o)
  local plan = self:plan(o.seed, o.epoch, o.batch)
  local last = math.min(#plan, o.limit or #plan)
  local at, ahead, queue = o.position, o.position, {}
  local function flips(n)
    if not self.options.flip then return nil end
    local draws = ops.rand({ o.batch }, "float32", "cpu", { key = random.hash("flip", o.seed), counter = 0ULL + o.epoch * 2 ^ 20 + n })
    local out, data = {}, draws:data()
    for b = 1, o.batch do out[b] = data[b - 1] < 0.5 end
    draws:free()
    return out
  end
  local function fill()
    while ahead < last and ahead - at < 2 do
      ahead = ahead + 1
      local ids = {}
      for b, i in ipairs(plan[ahead]) do ids[b] = self.rows[i].image_id end
      local covered = o.covered and not self.options.flip and o.covered(ids)
      queue[ahead] = covered and "covered" or submit(self, plan[ahead], flips(ahead))
    end
  end
  return function()
    while at < last do
      fill()
      at = at + 1
      local batch = describe(self, plan[at])
      if queue[at] ~= "covered" then
        local before = loader(self):waited()
        local pixels, problems = loader(self):take(queue[at])
        batch.pixels = pixels:keep()
        batch.waited = loader(self):waited() - before
        batch = drop_damaged(self, batch, problems)
      end
      queue[at] = nil
      fill()
      if batch then
        -- tokens of the whole step, known before its first picture is decoded
        local first = at - (at - 1) % o.accumulate
        local total = 0
        for k = first, math.min(first + o.accumulate - 1, last) do
          for _, i in ipairs(plan[k]) do total = total + #self.rows[i].ids - 1 end
        end
        batch.micro = (at - 1) % o.accumulate + 1
        batch.token_share = batch.tokens * o.accumulate / math.max(total, 1)
        batch.ids, batch.mask = batch.ids:keep(), batch.mask:keep()
        return batch
      end
    end
  end
end

return Dataset
