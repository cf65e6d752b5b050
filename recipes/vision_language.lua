-- The model of the recipes here: pictures and captions learn to find, to judge and to describe each other.
local weft = require "weft"
local nn, models, peft, losses = weft.nn, weft.models, weft.peft, weft.losses

local Stage1 = nn.Module "Stage1"

local function encoder(c)
  if c.pretrained ~= "" then return (models.dinov2.from_pretrained(c.pretrained)) end
  return (models.dinov2.new { hidden_size = c.width, num_hidden_layers = c.layers, num_attention_heads = c.heads,
    image_size = c.image, patch_size = c.patch, initializer_range = c.init_range })
end

function Stage1:init(c, data)
  if data.size % c.encoder.patch ~= 0 then
    error(("data.size %d is no multiple of the encoder's patch %d"):format(data.size, c.encoder.patch), 0)
  end
  local patches = (data.size / c.encoder.patch) ^ 2
  self.weights, self.label = c.weights, "Stage1"
  self.vision = peft.lora(encoder(c.encoder), c.lora)
  local width = self.vision.config.hidden_size
  self.compress = nn.Sequential(
    nn.Linear(width, c.compress.hidden), nn.ReLU(), nn.Dropout(c.compress.dropout),
    nn.Linear(c.compress.hidden, c.compress.width), nn.LayerNorm(c.compress.width))
  self.language = models.llama { vocab = data.vocab, width = c.language.width, layers = c.language.layers,
    ff = c.language.ff, heads = c.language.heads, dropout = c.language.dropout }
  self.fusion = models.fiber(self.language, { image_width = c.compress.width, layers = c.fusion.layers,
    image_heads = c.fusion.heads, image_hidden = c.fusion.ff })
  if c.memory.kind == "larimar" then self.memory = models.gpm { slots = c.memory.slots, width = c.compress.width } end
  self.itc = losses.ITC { dim = c.itc.dim, tau = c.itc.tau, alpha = c.itc.alpha, image = c.compress.width, text = c.language.width }
  self.itm = losses.ITM { width = c.language.width + c.compress.width, source = c.itm.source }
  local rows = math.min(c.itc.queue, math.floor(data.train:size() / 2))
  self.queue = losses.Queue(rows, { image = { c.itc.dim }, text = { c.itc.dim }, ids = { dtype = "int64" }, captions = { dtype = "int64" },
    tokens = { data.length, dtype = "int64" }, mask = { data.length, dtype = "bool" },
    patches = { patches, c.compress.width, dtype = "bfloat16" } })
  if c.itc.momentum > 0 then
    self.momentum = losses.Momentum(self, { momentum = c.itc.momentum, only = function(name)
      return name:find "^vision.*lora" or name:find "^compress" or name:find "^language" or name:find "^itc%.%a+_proj"
    end })
  end
  self.features = weft.train.features(c.features)
end

-- Patches of the encoder. While all of it is frozen each picture passes through it once.
function Stage1:patches(batch)
  local function compute() return self.vision(batch.pixels).patches end
  if self:features_usable() then return (self.features:batch(batch.image_ids, compute)) end
  return (compute())
end

function Stage1:features_usable()
  return self.training and self.features.enabled and self.vision:count(true) == 0
end
function Stage1:features_cached(ids) return self:features_usable() and self.features:covers(ids) end

-- dual: pooled features of both sides, before projection
function Stage1:dual(V, batch)
  local text = self.fusion:encode(batch.ids, { mask = batch.mask })
  return V:mean(2), models.pool.last_token(text, batch.mask)
end

function Stage1:losses(batch)
  local V = self.compress(self:patches(batch))                                -- [B, N, 128]
  local image, text = self:dual(V, batch)
  local keys = self.momentum and self.momentum:with(function()
    local Vm = self.compress(self.vision(batch.pixels).patches)
    local i, t = self.itc:project(self:dual(Vm, batch))
    return { image = i, text = t }
  end)
  local pair = self.itc(image, text, batch, self.queue, keys)                 -- dual pass
  local match = self.itm(function(v, ids, mask) return self.fusion:fuse(v, ids, { mask = mask }).feature end, V, pair, batch, self.queue)
  self.queue:push { image = pair.keys.image, text = pair.keys.text, ids = pair.keys.ids, captions = pair.keys.captions,
    tokens = batch.ids, mask = batch.mask, patches = V:detach() }
  local z, kl
  if self.memory then z, kl = self.memory(V) end
  local caption = self.fusion:caption(V, z, batch.ids, { mask = batch.mask }) * batch.token_share   -- caption pass
  return { itc = pair.loss, itm = match, lm = caption, memory = kl }
end

-- --- what evaluation asks
function Stage1:embed(batch)
  local V = self.compress(self.vision(batch.pixels).patches)
  return self.itc:project(self:dual(V, batch))
end

function Stage1:match(batch, ids, mask)
  local V = self.compress(self.vision(batch.pixels).patches)
  return (self.itm:score(self.fusion:fuse(V, ids, { mask = mask }).feature))
end

function Stage1:caption_loss(batch)
  local V = self.compress(self.vision(batch.pixels).patches)
  return (self.fusion:caption(V, self.memory and self.memory(V) or nil, batch.ids, { mask = batch.mask }))
end

---Captions of a batch's pictures as texts.
function Stage1:caption(batch, data, options)
  local V = self.compress(self.vision(batch.pixels).patches)
  local z = self.memory and self.memory(V) or nil
  local out = self.fusion:generate(V, z, { bos = data.special.bos, eos = data.special.eos, pad = data.special.pad,
    max_new_tokens = data.length - 1, beams = options and options.beams or 1 })
  local texts = {}
  for i, ids in ipairs(out.ids:totable()) do texts[i] = data.tokenizer:decode(ids, { skip_special = true }) end
  return texts
end

function Stage1:metrics()
  local c = self.itc.counts or {}
  return { itm_acc = self.itm.accuracy, itm_majority = self.itm.majority, itc_negatives = c.negatives, itc_same_picture = c.same_picture,
    itc_same_caption = c.same_caption, tau = self.itc.tau:item(), queue = self.queue:filled() }
end

-- What a run leaves beside its figures.
local function finish(run, result)
  peft.save(run.model.vision, run.dir .. "/adapter", { base = run.config.encoder.pretrained })
  require("weft.report.sheet").write(run, run.dir .. "/samples", result.captions and result.captions.samples)
  require("weft.report.curves").write(run.dir)
  require("weft.report.tables").print(run, result)
end

return {
  Model = Stage1,
  finish = finish,
  heads = { "itc", "itm" },
  metric = "retrieval.r_mean",
  after_warmup = { "lora.rank", "lora.alpha", "lora.dropout", "lora.targets", "lora_lr", "lora_plus_ratio" },
  data = function(config, o) return (weft.data.captioned(config.data, o)) end,
  evaluate = { weft.eval.retrieval, weft.eval.itm, weft.eval.captions },
  phases = function(config)
    return {
      { name = "Phase 1", epochs = config.warmup_epochs, frozen = { "vision.base", "vision.lora" } },
      { name = "Phase 2", frozen = { "vision.base" }, on_enter = config.phase_switch },
    }
  end,
}
