-- itm.lua: image-text matching: is this picture with this caption? Hard negatives are drawn by how
-- similar they look; the sample's own id and equal captions never are. ALBEF (Li et al. 2021).
local A = require "weft.args"
local module = require "weft.nn.module"
local autograd = require "weft.autograd"
local create = require("weft.tensor").create
local ops = require("weft.ops").functions
local recording = require "weft.recording"
local Linear = require "weft.nn.linear"

local ITM = module.class("ITM", module.base)

---@param options table  width (of the fused feature), source ("queue": queue and batch; "batch"), eps (1e-4,
---  added to each candidate's weight). After a call: accuracy, majority (what a constant would get), likeness.
function ITM:init(options)
  local o = A.options(options, { width = A.required, source = "queue", eps = 1e-4 }, "ITM")
  if o.source ~= "queue" and o.source ~= "batch" then A.choice(o.source, { queue = 1, batch = 1 }, "ITM", "source") end
  self.source, self.eps = o.source, o.eps
  self.head = Linear(o.width, 2)
  self.skipped_rows = 0
end

---Weights of candidates [B, columns] from keys' similarity over tau: softmax + eps, 0 where excluded.
function ITM.weights(sim, excluded, eps)
  return (ops.masked_fill(ops.softmax(sim) + eps, excluded, 0))
end

-- Rows of batch or queue by candidate index; -1 takes row 1 of the batch (its loss is left out).
local function pick(index, B, batch_rows, queue_rows)
  if not queue_rows then return (ops.index_select(batch_rows, ops.clamp(index, 0, B - 1), 1)) end
  local n = queue_rows:size(1)
  local from_batch = ops.index_select(batch_rows, ops.clamp(index, 0, B - 1), 1)
  local from_queue = ops.index_select(queue_rows, ops.clamp(index - B, 0, n - 1), 1):to(batch_rows.dtype)
  local in_batch = ops.lt(index, create.full { value = B, dtype = "int64", device = index.device })
  local shape = { index:size(1) }
  for i = 2, batch_rows.ndim do shape[i] = 1 end
  return (ops.where(in_batch:reshape(shape), from_batch, from_queue))
end

-- One candidate a row from weights, -1 where none can be had: none is allowed, or the similarity is NaN.
local function draw(self, sim, excluded, use)
  local weights = ITM.weights(sim, excluded, self.eps)
  weights = weights:masked_fill(ops.logical_not(ops.isfinite(weights)), 0)
  return (ops.multinomial(weights, 1, false, self:rng(use)):reshape { sim:size(1) })
end

-- Counts what was drawn for B rows, texts and pictures, and how alike it is: how many could be.
local function count_drawn(self, B, texts, pictures, text_scores, picture_scores)
  local valid, likeness = 0, 0
  for half, drawn in ipairs { texts, pictures } do
    local score = half == 1 and text_scores or picture_scores
    for i = 1, B do
      if drawn[i] >= 0 then valid, likeness = valid + 1, likeness + score[i] end
    end
  end
  if self.training then self.skipped_rows = self.skipped_rows + 2 * B - valid end
  self.accuracy, self.majority, self.likeness = nil, nil, nil
  -- mean similarity (over tau) of what was drawn: how hard the negatives are
  if valid > 0 then self.majority, self.likeness = math.max(B, valid) / (B + valid), likeness / valid end
  return valid
end

-- 1: a pair, 0: no pair, -100: nothing could be drawn. B pairs, then a text and then a picture drawn for each.
local function targets(text_index, image_index)
  local drawn = ops.cat({ text_index, image_index }, 1)
  local no_pair, nothing = create.zeros { dtype = "int64", device = drawn.device }, create.full { value = -100, dtype = "int64", device = drawn.device }
  local pairs_ = create.full { text_index:size(1), value = 1, dtype = "int64", device = drawn.device }
  return (ops.cat({ pairs_, ops.where(drawn:lt(0), nothing, no_pair) }, 1))
end

---@param fuse function  (V [n, N, w], ids [n, L], mask [n, L]) -> fused feature [n, width]
---@param V weft.Tensor  compressed patches [B, N, w]
---@param pair table  what ITC returned
---@param batch table  ids [B, L], mask [B, L]
---@param queue? table  with fields tokens, mask, patches beside ITC's
---@return weft.Tensor|nil loss  mean over the 3B pairs that have one
function ITM:forward(fuse, V, pair, batch, queue)
  local B = pair.batch
  local columns = pair.sim_i2t:size(2)
  local excluded = pair.left_out and ops.logical_or(pair.positive, pair.left_out) or pair.positive
  local use_queue = self.source == "queue" and queue and columns > B
  local sims = { pair.sim_i2t, pair.sim_t2i }
  if not use_queue then
    for i = 1, 2 do sims[i] = ops.narrow(sims[i], 2, 1, B) end
    excluded = ops.narrow(excluded, 2, 1, B)
  end
  local text_index, image_index = autograd.no_grad(function()
    return draw(self, sims[1], excluded, "texts"), draw(self, sims[2], excluded, "pictures")
  end)
  local function scores(half, index) return ops.gather(sims[half], ops.clamp(index, 0, columns - 1):unsqueeze(2), 2) end
  local valid
  recording.later({ text_index, image_index, scores(1, text_index), scores(2, image_index) }, function(...)
    valid = count_drawn(self, B, ...)
  end)
  if recording.active then
    recording.active:demand(ops.maximum((ops.max(text_index, 1)), (ops.max(image_index, 1))):ge(0), "no row has a candidate for matching")
  elseif valid == 0 then return nil end
  local target = targets(text_index, image_index)
  local function field(name) return use_queue and queue:get(name) or nil end
  local mask = batch.mask:to "int64"
  local negative_ids = pick(text_index, B, batch.ids, field "tokens")
  local negative_mask = pick(text_index, B, mask, use_queue and field("mask"):to "int64" or nil):to "bool"
  local negative_V = pick(image_index, B, V, field "patches")
  local feature = fuse(ops.cat({ V, V, negative_V }, 1), ops.cat({ batch.ids, negative_ids, batch.ids }, 1),
    ops.cat({ batch.mask, negative_mask, batch.mask }, 1))
  local logits = self.head(feature)
  recording.later({ logits:detach():argmax(2), target }, function(guess, wanted)
    local right, counted = 0, 0
    for i = 1, 3 * B do
      if wanted[i] >= 0 then
        counted = counted + 1
        if guess[i] == wanted[i] then right = right + 1 end
      end
    end
    self.accuracy = right / counted
  end)
  return (ops.cross_entropy(logits, target))
end

---Log-odds that pictures and captions match [n]: what re-ranking and accuracy read.
function ITM:score(feature)
  local logits = self.head(feature)
  return (ops.select(logits, 2, 2) - ops.select(logits, 2, 1))
end

function ITM:extra_state() return { skipped_rows = self.skipped_rows } end
function ITM:load_extra_state(s) self.skipped_rows = s.skipped_rows end

return ITM
