-- itc.lua: image-text contrastive loss with a queue. ALBEF (Li et al. 2021), MoCo (He et al. 2020);
-- columns with the query's picture id are positives, never negatives.
local A = require "weft.args"
local module = require "weft.nn.module"
local initial = require "weft.nn.initial"
local autograd = require "weft.autograd"
local create = require("weft.tensor").create
local ops = require("weft.ops").functions
local read = require "weft.tensor.read"
local recording = require "weft.recording"
local Linear = require "weft.nn.linear"

local ITC = module.class("ITC", module.base)
ITC.wide = true

---@param options table  image and text (widths), dim (256), tau (.07: a parameter, kept in tau_min .. tau_max,
---  .001 to .5), alpha (0: share of soft targets from the keys), like (0: share of soft targets from the captions'
---  likeness, over its temperature like_tau, .2)
function ITC:init(options)
  local o = A.options(options, { dim = 256, tau = 0.07, alpha = 0, image = A.required, text = A.required, tau_min = 0.001,
    tau_max = 0.5, like = 0, like_tau = 0.2 }, "ITC")
  self.alpha, self.tau_min, self.tau_max, self.like, self.like_tau = o.alpha, o.tau_min, o.tau_max, o.like, o.like_tau
  self.image_proj = Linear(o.image, o.dim)
  self.text_proj = Linear(o.text, o.dim)
  self.image_proj.wide, self.text_proj.wide = true, true
  self:parameter("tau", {}, initial.constant(o.tau))
  self.skipped = 0
end

---L2-normalised projections of pooled features [B, width] -> [B, dim].
---In float32 at the least, whatever the features come in: similarities are.
function ITC:project(image, text)
  local function one(proj, x) return x and ops.normalize(proj(x:to(proj.weight.dtype))) end
  return one(self.image_proj, image), one(self.text_proj, text)
end

-- Whole numbers as a tensor on the device of `like`.
local function int64(values, like)
  if A.is_tensor(values) then return (values:to { dtype = "int64", device = like and like.device }) end
  local t = create.empty { #values, dtype = "int64" }
  local p = t:data()
  for i, v in ipairs(values) do p[i - 1] = v end
  return like and t:to(like.device) or t
end
ITC.int64 = int64

-- Losses of the rows that count: those that have a negative and whose losses are numbers. left: columns that
-- are no negatives, by row. A captured step stands where every row counts.
local function counting(left, columns, i2t, t2i)
  local B = left:size(1)
  if recording.active then
    recording.active:demand(left:lt(columns), "a row has no negative")
    recording.active:demand(ops.isfinite(i2t + t2i), "a row's contrastive loss is not finite")
    return i2t, t2i, B
  end
  local rows = {}
  local taken, value_i, value_t = unpack(read.lists { left, i2t, t2i })
  for r = 1, B do
    local sum = value_i[r] + value_t[r]
    if taken[r] < columns and sum == sum and sum < math.huge then rows[#rows + 1] = r - 1 end
  end
  if #rows == 0 or #rows == B then return i2t, t2i, #rows end
  local index = int64(rows, i2t)
  return ops.index_select(i2t, index, 1), ops.index_select(t2i, index, 1), #rows
end

-- Each row's share of the columns by how alike captions are; those of the queue have none.
local function alike(likeness, tau, left_out, columns)
  local B, x = likeness:size(1), likeness / tau
  if left_out then x = ops.masked_fill(x, ops.narrow(left_out, 2, 1, B), -math.huge) end
  local share = ops.softmax(x)
  if columns == B then return share end
  return (ops.cat({ share, create.zeros { B, columns - B, dtype = share.dtype, device = share.device } }, 2))
end

---The loss of both directions from normalised features. Rows: this batch; columns: this batch's keys,
---then the queue's.
---@param f table  image, text [B, D]; image_keys, text_keys [B, D] (detached); queue_image, queue_text [F, D];
---  ids, captions [B] and queue_ids, queue_captions [F], int64; tau; likeness of the captions [B, B] where
---  part of the targets is to follow it: like, the share, and like_tau
---@param alpha number  share of the soft targets (from the keys' own similarity); 0: none
---@return table  loss (nil where no row can be compared), i2t, t2i, target_i2t, target_t2i, sim_i2t, sim_t2i
---  (keys' similarity over tau, no gradient), positive, left_out [B, B+F], rows (that count), batch
function ITC.pair_loss(f, alpha)
  local B = f.image:size(1)
  local text_keys, image_keys, ids, captions = f.text_keys, f.image_keys, f.ids, f.captions
  if f.queue_ids and f.queue_ids:size(1) > 0 then
    text_keys, image_keys = ops.cat({ text_keys, f.queue_text }, 1), ops.cat({ image_keys, f.queue_image }, 1)
    ids = ops.cat({ ids, f.queue_ids }, 1)
    captions = captions and ops.cat({ captions, f.queue_captions }, 1)
  end
  local positive = ops.eq(f.ids:unsqueeze(2), ids:unsqueeze(1))            -- [B, B+F]
  local left_out
  if captions then
    left_out = ops.logical_and(ops.eq(f.captions:unsqueeze(2), captions:unsqueeze(1)), ops.logical_not(positive))
  end
  local hard = positive:to(f.image.dtype)
  local left = hard:sum(2)
  if left_out then left = left + left_out:to(f.image.dtype):sum(2) end
  hard = hard / hard:sum(2, true)
  if f.likeness then
    hard = autograd.no_grad(function()
      return hard * (1 - f.like) + alike(f.likeness:to(hard.dtype), f.like_tau, left_out, hard:size(2)) * f.like
    end)
  end
  local tau = f.tau
  local detached = tau:detach()
  local function direction(query, query_key, keys)
    local sim = ops.matmul(query, keys:t()) / tau
    local key_sim = autograd.no_grad(function() return ops.matmul(query_key, keys:t()) / detached end)
    if left_out then
      sim, key_sim = ops.masked_fill(sim, left_out, -math.huge), ops.masked_fill(key_sim, left_out, -math.huge)
    end
    local target = hard
    if alpha > 0 then target = autograd.no_grad(function() return ops.softmax(key_sim) * alpha + hard * (1 - alpha) end) end
    return ops.cross_entropy_soft(sim, target, "none"), target, key_sim
  end
  local columns = positive:size(2)
  local i2t, target_i2t, sim_i2t = direction(f.image, f.image_keys, text_keys)
  local t2i, target_t2i, sim_t2i = direction(f.text, f.text_keys, image_keys)
  local pair = { target_i2t = target_i2t, target_t2i = target_t2i, sim_i2t = sim_i2t, sim_t2i = sim_t2i,
    positive = positive, left_out = left_out, batch = B }
  i2t, t2i, pair.rows = counting(left, columns, i2t, t2i)
  if pair.rows == 0 then return pair end
  pair.i2t, pair.t2i = i2t:mean(), t2i:mean()
  pair.loss = (pair.i2t + pair.t2i) * 0.5
  return pair
end

---image [B, wi] and text [B, wt] pooled features of pairs; batch has image_ids and caption_ids (Lua
---lists, or int64 tensors); queue holds fields image, text, ids, captions, and is read here, not written.
---keys: momentum features, when there are any; likeness [B, B] of the captions (losses.Likeness) where
---`like` is above 0. `counts` tells of the last call: negatives, same_picture
---and same_caption (left out) over the batch, rows that counted, and the prior: log of the columns.
---@return table pair  as pair_loss, with the keys; loss is nil where nothing can be compared
function ITC:forward(image, text, batch, queue, keys, likeness)
  if self.tau.device == "cpu" then
    local tau = self.tau:data()
    tau[0] = math.min(math.max(tau[0], self.tau_min), self.tau_max)
  else
    autograd.no_grad(function() self.tau:copy_(ops.clamp(self.tau, self.tau_min, self.tau_max)) end)
  end
  local q_image, q_text = self:project(image, text)
  local ids, captions = int64(batch.image_ids, image), int64(batch.caption_ids, image)
  if ids:size(1) ~= image:size(1) or captions:size(1) ~= image:size(1) then
    A.raise("ITC: %d pictures, %d image_ids, %d caption_ids", image:size(1), ids:size(1), captions:size(1))
  end
  local k_image, k_text = q_image:detach(), q_text:detach()
  if keys then k_image, k_text = keys.image:detach(), keys.text:detach() end
  local f = { image = q_image, text = q_text, image_keys = k_image, text_keys = k_text, ids = ids, captions = captions, tau = self.tau }
  if self.like > 0 then
    if not likeness then A.raise "ITC: like is above 0, and no likeness of the captions was given" end
    f.likeness, f.like, f.like_tau = likeness, self.like, self.like_tau
  end
  if queue and queue:filled() > 0 then
    f.queue_image, f.queue_text = queue:get "image", queue:get "text"
    f.queue_ids, f.queue_captions = queue:get "ids", queue:get "captions"
  end
  local pair = ITC.pair_loss(f, self.alpha)
  pair.keys = { image = k_image, text = k_text, ids = ids, captions = captions }
  local columns, rows = pair.positive:size(2), pair.batch
  recording.later({ pair.positive:to("int64"):sum(), pair.left_out:to("int64"):sum() }, function(positive, left_out)
    local same, caption = positive[1] - rows, left_out[1]
    self.counts = { negatives = columns * rows - rows - same - caption, same_picture = same, same_caption = caption,
      rows = pair.rows, prior = math.log(columns) }
  end)
  if self.training then self.skipped = self.skipped + rows - pair.rows end
  return pair
end

function ITC:extra_state() return { skipped = self.skipped } end
function ITC:load_extra_state(s) self.skipped = s.skipped end

return ITC
