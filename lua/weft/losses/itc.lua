-- itc.lua: image-text contrastive loss with a queue. ALBEF (Li et al. 2021), MoCo (He et al. 2020);
-- columns with the query's picture id are positives, never negatives.
local A = require "weft.args"
local module = require "weft.nn.module"
local initial = require "weft.nn.initial"
local autograd = require "weft.autograd"
local create = require("weft.tensor").create
local ops = require("weft.ops").functions
local Linear = require "weft.nn.linear"

local ITC = module.class("ITC", module.base)

---@param options table  dim, tau, alpha (soft targets), image and text (widths), tau_min, tau_max
function ITC:init(options)
  local o = A.options(options, { dim = 256, tau = 0.07, alpha = 0, image = A.required, text = A.required, tau_min = 0.001,
    tau_max = 0.5, queue = A.none, momentum = A.none }, "ITC")
  self.alpha, self.tau_min, self.tau_max = o.alpha, o.tau_min, o.tau_max
  self.image_proj = Linear(o.image, o.dim)
  self.text_proj = Linear(o.text, o.dim)
  self:parameter("tau", {}, initial.constant(o.tau))
  self.skipped = 0
end

---L2-normalised projections of pooled features [B, width] -> [B, dim].
function ITC:project(image, text)
  return image and ops.normalize(self.image_proj(image)), text and ops.normalize(self.text_proj(text))
end

local function int64(values)
  local t = create.empty { #values, dtype = "int64" }
  local p = t:data()
  for i, v in ipairs(values) do p[i - 1] = v end
  return t
end
ITC.int64 = int64

---The loss of both directions from normalised features. Rows: this batch; columns: this batch's keys,
---then the queue's.
---@param f table  image, text [B, D]; image_keys, text_keys [B, D] (detached); queue_image, queue_text [F, D];
---  ids, captions [B] and queue_ids, queue_captions [F], int64; tau
---@return table  loss, i2t, t2i, targets, sim_i2t, sim_t2i (keys' similarity over tau, no gradient), same [B, B+F]
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
  hard = hard / hard:sum(2, true)
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
    return ops.cross_entropy_soft(sim, target), target, key_sim
  end
  local i2t, target_i2t, sim_i2t = direction(f.image, f.image_keys, text_keys)
  local t2i, target_t2i, sim_t2i = direction(f.text, f.text_keys, image_keys)
  return { loss = (i2t + t2i) * 0.5, i2t = i2t, t2i = t2i, target_i2t = target_i2t, target_t2i = target_t2i,
    sim_i2t = sim_i2t, sim_t2i = sim_t2i, positive = positive, left_out = left_out, batch = B }
end

---image [B, wi] and text [B, wt] pooled features of pairs; batch has image_ids and caption_ids (Lua
---lists); queue holds fields image, text, ids, captions. keys: momentum features, when there are any.
---Pushes this batch's keys to the queue.
---@return table pair  as pair_loss, with negatives counted; loss is nil where nothing can be compared
function ITC:forward(image, text, batch, queue, keys)
  autograd.no_grad(function()
    local tau = self.tau:data()
    tau[0] = math.min(math.max(tau[0], self.tau_min), self.tau_max)
  end)
  local q_image, q_text = self:project(image, text)
  local ids, captions = int64(batch.image_ids), int64(batch.caption_ids)
  local k_image, k_text = q_image:detach(), q_text:detach()
  if keys then k_image, k_text = keys.image, keys.text end
  local f = { image = q_image, text = q_text, image_keys = k_image, text_keys = k_text, ids = ids, captions = captions, tau = self.tau }
  if queue and queue:filled() > 0 then
    f.queue_image, f.queue_text = queue:get "image", queue:get "text"
    f.queue_ids, f.queue_captions = queue:get "ids", queue:get "captions"
  end
  local pair = ITC.pair_loss(f, self.alpha)
  pair.keys = { image = k_image, text = k_text, ids = ids, captions = captions }
  local columns = pair.positive:size(2)
  local same = pair.positive:to("float32"):sum():item() - pair.batch
  local caption = pair.left_out:to("float32"):sum():item()
  self.counts = { negatives = columns * pair.batch - pair.batch - same - caption, same_picture = same, same_caption = caption, rows = pair.batch }
  -- one picture alone, or all of them equal, leaves nothing to tell apart
  local value = pair.loss:item()
  if self.counts.negatives == 0 or value ~= value then
    self.skipped = self.skipped + 1
    pair.loss = nil
  end
  return pair
end

function ITC:extra_state() return { skipped = self.skipped } end
function ITC:load_extra_state(s) self.skipped = s.skipped end

return ITC
