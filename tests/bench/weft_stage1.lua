-- weft_stage1.lua: the recipes' stage-1 model for the benchmark, at a given size, with a made-up batch.
-- Required by dump.lua and rows.lua from the checkout's root.
package.path = "recipes/?.lua;" .. package.path
local weft = require "weft"
local parts = require "vision_language"

local M = {}

-- Dropout is 0 everywhere: both sides must compute the same numbers.
M.tiny = {
  encoder = { pretrained = "", width = 64, layers = 2, heads = 2, image = 70, patch = 14, init_range = 0.02 },
  lora = { rank = 4, alpha = 8, dropout = 0, targets = { "query", "value" } },
  compress = { hidden = 48, width = 32, dropout = 0 },
  language = { width = 48, layers = 3, ff = 96, heads = 3, dropout = 0 },
  fusion = { layers = 2, heads = 2, ff = 64, gate = 0 },
  memory = { kind = "larimar", slots = 4 },
  itc = { dim = 24, queue = 16, tau = 0.07, alpha = 0, momentum = 0, patch_dropout = 0, like = 0 },
  itm = { source = "queue" },
  weights = { itc = 1, itm = 0.5, lm = 1, memory = 0.1 }, average = 0,
  features = { enabled = false, memory = 0, disk = 0 },
  data = { size = 56, length = 12, vocab = 64, batch = 6 },
}

M.base = {
  encoder = { pretrained = "", width = 768, layers = 12, heads = 12, image = 518, patch = 14, init_range = 0.02 },
  lora = { rank = 16, alpha = 32, dropout = 0.1, targets = { "query", "value" } },
  compress = { hidden = 384, width = 128, dropout = 0.1 },
  language = { width = 384, layers = 7, ff = 1024, heads = 6, dropout = 0 },
  fusion = { layers = 4, heads = 4, ff = 512, gate = 0 },
  memory = { kind = "larimar", slots = 32 },
  itc = { dim = 256, queue = 64, tau = 0.07, alpha = 0, momentum = 0, patch_dropout = 0, like = 0 },
  itm = { source = "queue" },
  weights = { itc = 1, itm = 0.5, lm = 1, memory = 0.1 }, average = 0,
  features = { enabled = false, memory = 0, disk = 0 },
  data = { size = 224, length = 40, vocab = 32768, batch = 8 },
}

---Settings of the encoder as models.dinov2 takes them.
function M.encoder(c)
  return { hidden_size = c.encoder.width, num_hidden_layers = c.encoder.layers, num_attention_heads = c.encoder.heads,
    image_size = c.encoder.image, patch_size = c.encoder.patch }
end

local function stream(purpose) return weft.random.stream(purpose, 7) end

---A model of a size above. Gates and LoRA's B, zero at the start, get values: nothing may hide behind them.
function M.model(c)
  local data = { size = c.data.size, vocab = c.data.vocab, length = c.data.length,
    train = { count_pictures = function() return 2 * c.itc.queue end } }
  weft.manual_seed(3)
  local model = parts.Model(weft.config(c), data)
  model:assign_paths()
  model:initialize(3)
  weft.no_grad(function()
    for name, t in model:named_parameters() do
      if name:find "gate$" then t:fill_(0.3)
      elseif name:find "lora_B" then t:copy_(weft.randn { t:size(1), t:size(2), rng = stream(name) } * 0.02) end
    end
  end)
  for name, t in model:named_parameters() do
    if name:find "^vision" and not name:find "%.lora_" then t:requires_grad_(false) end
  end
  return model:train()
end

---Pictures of noise, captions of random tokens of several lengths; two captions are equal.
function M.batch(c, n, first_id)
  local d = c.data
  local ids = weft.randint { n, d.length, low = 3, high = d.vocab, rng = stream("ids" .. first_id) }
  local mask, raw = weft.zeros { n, d.length, dtype = "bool" }, ids:data()
  local image_ids, caption_ids, tokens = {}, {}, mask:data()
  for b = 0, n - 1 do
    local length = d.length - (b * 3) % (d.length - 3)
    for i = 0, d.length - 1 do
      if i < length then tokens[b * d.length + i] = 1 else raw[b * d.length + i] = 0 end
    end
    image_ids[b + 1], caption_ids[b + 1] = first_id + b, first_id + (b == 1 and 0 or b)
  end
  return { pixels = weft.randn { n, 3, d.size, d.size, rng = stream("pixels" .. first_id) }, ids = ids, mask = mask,
    image_ids = image_ids, caption_ids = caption_ids, token_share = 1 }
end

---A batch as a model on a device takes it: floats in the model's dtype.
function M.on(batch, device, dtype)
  if device == "cpu" then return batch end
  local out = {}
  for name, value in pairs(batch) do out[name] = value end
  out.pixels = batch.pixels:to { device = device, dtype = dtype ~= "float32" and dtype or nil }
  out.ids, out.mask = batch.ids:to(device), batch.mask:to(device)
  for _, name in ipairs { "image_ids", "caption_ids" } do out[name] = weft.tensor(batch[name], { dtype = "int64", device = device }) end
  return out
end

---Fills the queue with what two batches before would have left; one of them holds pictures of the batch.
function M.fill_queue(model, c)
  for round, first in ipairs { 100, 2 } do
    weft.scope(function()
      local n, dim = c.itc.queue / 2 - 1, c.itc.dim
      local batch = M.batch(c, n, first)
      local function features(purpose)
        return weft.normalize(weft.randn { n, dim, rng = stream(purpose .. round) })
      end
      local patches = (c.data.size / c.encoder.patch) ^ 2
      model.queue:push { image = features "image", text = features "text", ids = weft.tensor(batch.image_ids, { dtype = "int64" }),
        captions = weft.tensor(batch.caption_ids, { dtype = "int64" }), step = weft.zeros { n, dtype = "int64" }, tokens = batch.ids, mask = batch.mask,
        patches = weft.randn { n, patches, c.compress.width, rng = stream("patches" .. round) }:to "bfloat16" }
      model.queue:commit()
    end)
  end
end

function M.total(losses, weights)
  local sum
  for _, name in ipairs { "itc", "itm", "lm", "memory" } do
    local part = losses[name] * weights[name]
    sum = sum and sum + part or part
  end
  return sum
end

return M
