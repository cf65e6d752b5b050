-- captioned.lua: captioned pictures as batches: deterministic order by seed and epoch, pictures
-- decoded ahead of the step, damaged ones skipped, counted and named.
local A = require "weft.args"
local orders = require "weft.data.order"
local random = require "weft.random"
local ops = require("weft.ops").functions
local create = require("weft.tensor").create
local augment = require "weft.data.augment"
local rows_of = require "weft.data.rows"

local Dataset = {}
Dataset.__index = Dataset

---@param rows weft.Rows|table[]  { path, name, caption, image_id, caption_id, ids }
---@param options table  size (pixels), resize (short edge), length (caption tokens), pad, vocab, threads,
---  cache (MiB), flip, random_crop, vary_after, text (lists of token ids)
function Dataset.new(rows, options)
  for i, row in ipairs(rows_of.is_rows(rows) and {} or rows) do  -- ids of columns come from the tokenizer
    for _, id in ipairs(row.ids or {}) do
      if options.vocab and (id < 0 or id >= options.vocab) then
        A.raise("token %d outside 0..%d, caption %d (%s)", id, options.vocab - 1, i, row.name)
      end
    end
  end
  return setmetatable({ rows = rows, options = options, damaged = {} }, Dataset)
end

-- What a picture is resized to: its short edge, or both sides where its shape gives way.
function Dataset.resize_of(o) return o.fit == "stretch" and { o.size, o.size } or o.resize end

function Dataset:size() return (rows_of.size(self.rows)) end

---Distinct pictures: rows that share one are one.
function Dataset:count_pictures() return (rows_of.distinct(self.rows, "image_id")) end

---In how many captions each token stands, over all of them or the first 100,000: what says how rare it is.
---@return table counts  token id -> captions
---@return integer n  captions that were looked at
function Dataset:count_tokens()
  local counts, last, ids_of = {}, {}, rows_of.reader(self.rows, "ids")
  local n = math.min(rows_of.size(self.rows), 100000)
  for i = 1, n do
    for _, id in ipairs(ids_of(i)) do
      if last[id] ~= i then counts[id], last[id] = (counts[id] or 0) + 1, i end
    end
  end
  return counts, n
end

function Dataset:count_batches(batch) return math.floor(self:size() / batch) end

local function loader(self)
  if not self.loader_ then
    local o = self.options
    self.loader_ = require("weft.io.loader").new { height = o.size, width = o.size, resize = o.resize, threads = o.threads,
      depth = 3, cache = o.cache * 2 ^ 20, mean = o.mean, std = o.std,
      place = self.placement and self.placement.device ~= "cpu" and self.placement or nil }
  end
  return self.loader_
end

---Order of the rows in an epoch: a permutation keyed by seed and epoch alone, as a tensor of places from 0.
---@return weft.Tensor
function Dataset:order(seed, epoch) return (orders.permutation(self:size(), seed, epoch)) end

---Batches of an epoch as lists of rows, always count_batches of them; a picture at most once in each,
---so that where most pictures are the same a batch may come out short. plan[k] is batch k, plan.n how many.
---@return weft.Plan
function Dataset:plan(seed, epoch, batch)
  return (orders.plan(self:order(seed, epoch), rows_of.reader(self.rows, "image_id"), batch, self:count_batches(batch)))
end

---Hash of the rows and of the first epochs' order, for result.json.
function Dataset:order_hash(seed) return (orders.hash(self.rows, seed)) end

-- Lists of token ids as int64 [B, L] padded to the right; mask is true where a token stands.
local function tokens(self, lists)
  local o = self.options
  local B, L = #lists, o.length
  local ids, mask = create.full { B, L, value = o.pad, dtype = "int64" }, create.zeros { B, L, dtype = "bool" }
  local p, m, count = ids:data(), mask:data(), 0
  for b, row in ipairs(lists) do
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
  local lists = {}
  for b, i in ipairs(indices) do lists[b] = self.rows[i].ids end
  batch.ids, batch.mask, batch.tokens = tokens(self, lists)
  return batch
end

local function submit(self, indices, changes)
  local o, plan = self.options, {}
  for b, i in ipairs(indices) do
    local c = changes and changes[b] or {}
    plan[b] = { path = self.rows[i].path, resize = Dataset.resize_of(o), flip = c.flip, window = c.window }
  end
  return (loader(self):submit(plan))
end

-- Remembers a damaged picture, and tells of it once.
local function note_damage(self, name, message)
  if self.damaged[name] then return end
  self.damaged[name] = message
  self.damaged[#self.damaged + 1] = name
  if self.on_damage then self.on_damage(name, message) end
end

-- A damaged picture leaves its batch; its place is taken by nothing. batch.pixel_rows says which rows
-- of the batch have pixels, problems are by row of pixels.
local function drop_damaged(self, batch, problems)
  if next(problems) == nil then return batch end
  local bad = {}
  for k, message in pairs(problems) do
    local b = batch.pixel_rows[k]
    bad[b] = true
    note_damage(self, self.rows[batch.indices[b]].name, message)
  end
  local kept, new_place = {}, {}
  for b, i in ipairs(batch.indices) do
    if not bad[b] then
      kept[#kept + 1] = i
      new_place[b] = #kept
    end
  end
  if #kept == 0 then return { indices = {}, tokens = 0 } end
  local again, places = describe(self, kept), {}
  again.pixel_rows = {}
  for k, b in ipairs(batch.pixel_rows) do
    if not bad[b] then
      places[#places + 1] = k - 1
      table.insert(again.pixel_rows, new_place[b])
    end
  end
  if #places > 0 then
    again.pixels = ops.index_select(batch.pixels, create.tensor(places, { dtype = "int64" }):to(batch.pixels.device), 1)
  end
  return again
end

-- Tensors of a batch on the device and in the dtype that the model computes in (self.placement).
local function placed(self, batch, keep)
  local to = self.placement
  if not to or #batch.indices == 0 then return batch end
  local function move(part, name, dtype)
    local t = part[name]
    if not t then return end
    local y = t:to(to.device):to(dtype or t.dtype)
    if y == t then return end
    part[name] = keep and y:keep() or y
    t:free()
  end
  for _, part in ipairs { batch, batch.text } do
    move(part, "pixels", to.dtype)
    move(part, "ids")
    move(part, "mask")
  end
  return batch
end

local function all_rows(n)
  local out = {}
  for b = 1, n do out[b] = b end
  return out
end

---Takes out the rows whose picture can't be read: for sets that are scored, whose rows are counted.
function Dataset:drop_damaged()
  local bad, step, n = {}, 16, rows_of.size(self.rows)
  for first = 1, n, step do
    local indices = {}
    for i = first, math.min(first + step - 1, n) do indices[#indices + 1] = i end
    local pixels, problems = loader(self):take(submit(self, indices))
    pixels:free()
    for b, i in ipairs(indices) do
      if problems[b] then
        note_damage(self, self.rows[i].name, problems[b])
        bad[i] = true
      end
    end
  end
  if next(bad) then self.rows = rows_of.select(self.rows, function(i) return not bad[i] end) end
end

---One batch of given rows, at once: what evaluation and checks use.
function Dataset:batch_of(indices, with_pixels)
  local batch = describe(self, indices)
  if with_pixels ~= false then
    local problems
    batch.pixels, problems = loader(self):take(submit(self, indices))
    batch.pixel_rows = all_rows(#indices)
    local path = batch.paths[1]
    batch = drop_damaged(self, batch, problems)
    if #batch.indices == 0 then A.raise("no picture of this batch can be read: %s", path) end
  end
  batch.micro, batch.token_share = 1, 1
  return (placed(self, batch))
end

-- Plain text of a micro-step: the next lines of a permutation that is keyed by seed and pass.
local function text_batch(self, o, at)
  local text, n = self.options.text, #self.options.text
  local first, lists, order, pass = ((o.epoch - 1) * o.per_epoch + at - 1) * o.batch, {}, nil, nil
  for k = first, first + math.min(o.batch, n) - 1 do
    if math.floor(k / n) ~= pass then
      pass = math.floor(k / n)
      order = ops.randperm(n, "cpu", { key = random.hash("text order", o.seed), counter = 0ULL + pass }):totable()
    end
    lists[#lists + 1] = text[order[k % n + 1] + 1]
  end
  return lists
end

-- Tokens to predict in lists of ids.
local function predicted(lists)
  local n = 0
  for _, ids in ipairs(lists) do n = n + #ids - 1 end
  return n
end

---Reads an epoch from a position on, pictures decoded ahead.
---@param o table  epoch, position (batches already taken), batch, accumulate, limit, seed, covered(id): true for
---  pictures whose pixels are not needed
---@return function next  the next batch, or nil. pixels are those of pixel_rows; a batch
---  none of whose pictures can be read has no indices
function Dataset:reader(o)
  -- what a reader before this one asked for and never took, its loop left early
  for _, item in pairs(self.ahead or {}) do
    if item.ticket then (loader(self):take(item.ticket)):free() end
  end
  if self.planned then self.planned:free() end
  local plan = self:plan(o.seed, o.epoch, o.batch)
  self.planned = plan
  local last = math.min(plan.n, o.limit or plan.n)
  o.per_epoch = last
  local at, ahead, queue = o.position, o.position, {}
  self.ahead = queue
  local varies = augment.varies(self.options, o.epoch)
  local function fill()
    while ahead < last and ahead - at < 2 do
      ahead = ahead + 1
      local rows, indices = {}, {}
      for b, i in ipairs(plan[ahead]) do
        if varies or not o.covered or not o.covered(self.rows[i].image_id) then
          rows[#rows + 1], indices[#indices + 1] = b, i
        end
      end
      queue[ahead] = { rows = rows, ticket = #rows > 0
        and submit(self, indices, varies and augment.draw(self.options, o.seed, o.epoch, ahead, #indices)) or nil }
    end
  end
  -- share of a micro-step's loss, so that the step's is a sum over its tokens divided by all of them
  local function share(own, count_at, n)
    local first, total = at - (at - 1) % o.accumulate, 0
    for k = first, math.min(first + o.accumulate - 1, last) do total = total + count_at(k) end
    return own * n / math.max(total, 1)
  end
  local token_count = rows_of.reader(self.rows, "token_count")
  local function caption_tokens(k)
    local n = 0
    for _, i in ipairs(plan[k]) do n = n + token_count(i) - 1 end
    return n
  end
  return function()
    if at >= last then return nil end
    if self.ahead ~= queue then A.raise("this reader was left for another; read on from that one") end
    fill()
    at = at + 1
    local next_, batch = queue[at], describe(self, plan[at])
    local waited = 0
    batch.pixel_rows = next_.rows
    if next_.ticket then
      local before = loader(self):waited()
      local pixels, problems = loader(self):take(next_.ticket)
      next_.ticket = nil
      batch.pixels = pixels:keep()
      waited = loader(self):waited() - before
      batch = drop_damaged(self, batch, problems)
    end
    queue[at] = nil
    fill()
    batch.varied = varies  -- its pictures are not those of another epoch
    batch.waited, batch.micro = waited, (at - 1) % o.accumulate + 1
    batch.token_share = share(batch.tokens, caption_tokens, o.accumulate)
    if #batch.indices > 0 then
      batch.ids, batch.mask = batch.ids:keep(), batch.mask:keep()
      if self.options.text then
        local ids, mask, n = tokens(self, text_batch(self, o, at))
        batch.text = { ids = ids:keep(), mask = mask:keep(), tokens = n,
          token_share = share(n, function(k) return predicted(text_batch(self, o, k)) end, o.accumulate) }
      end
    end
    return (placed(self, batch, true))
  end
end

return Dataset
