-- The model of the recipes here: pictures and captions learn to find, to judge and to describe each other.
local weft = require "weft"
local nn, models, peft, losses = weft.nn, weft.models, weft.peft, weft.losses

local Stage1 = nn.Module "Stage1"

local function encoder(c)
  if c.pretrained ~= "" then return (models.dinov2.from_pretrained(c.pretrained)) end
  return (models.dinov2.new { hidden_size = c.width, num_hidden_layers = c.layers, num_attention_heads = c.heads,
    image_size = c.image, patch_size = c.patch, initializer_range = c.init_range })
end

-- The encoder with its adapter: a new one, or the one of a folder (lora.init_from), which trains on.
local function adapted(c, data)
  local settings = weft.config.plain(c.lora)
  local from = settings.init_from or ""
  -- what the branch is multiplied with, set in place of alpha
  if (settings.scale or 0) > 0 then settings.alpha = settings.scale * (settings.rslora and math.sqrt(settings.rank) or settings.rank) end
  settings.init_from, settings.scale = nil, nil
  if from == "" then return (peft.lora(encoder(c.encoder), settings)) end
  return peft.load(encoder(c.encoder), from, { trainable = true, preprocessing = weft.io.preprocess.of_run(data.train.options) })
end

function Stage1:init(c, data)
  if data.size % c.encoder.patch ~= 0 then
    error(("data.size %d is no multiple of the encoder's patch %d"):format(data.size, c.encoder.patch), 0)
  end
  local patches = (data.size / c.encoder.patch) ^ 2
  self.weights, self.label = c.weights, "Stage1"
  self.random_encoder = c.encoder.pretrained == ""
  self.vision, self.begun_from = adapted(c, data)
  local width = self.vision.config.hidden_size
  self.compress = nn.Sequential(
    nn.Linear(width, c.compress.hidden), nn.ReLU(), nn.Dropout(c.compress.dropout),
    nn.Linear(c.compress.hidden, c.compress.width), nn.LayerNorm(c.compress.width))
  self.language = models.llama { vocab = data.vocab, width = c.language.width, layers = c.language.layers,
    ff = c.language.ff, heads = c.language.heads, dropout = c.language.dropout }
  self.fusion = models.fiber(self.language, { image_width = c.compress.width, layers = c.fusion.layers,
    image_heads = c.fusion.heads, image_hidden = c.fusion.ff, gate = c.fusion.gate })
  if c.memory.kind == "larimar" then self.memory = models.gpm { slots = c.memory.slots, width = c.compress.width } end
  self.itc = losses.ITC { dim = c.itc.dim, tau = c.itc.tau, alpha = c.itc.alpha, like = c.itc.like, image = c.compress.width, text = c.language.width }
  if c.itc.like > 0 then self.likeness = losses.Likeness(data.vocab):weigh(data.train:count_tokens()) end
  self.patch_dropout = nn.Dropout(c.itc.patch_dropout)
  self.itm = losses.ITM { width = c.language.width + c.compress.width, source = c.itm.source }
  local rows = math.min(c.itc.queue, math.floor(data.train:count_pictures() / 2))
  self.queue = losses.Queue(rows, { image = { c.itc.dim }, text = { c.itc.dim }, ids = { dtype = "int64" }, captions = { dtype = "int64" },
    step = { dtype = "int64" }, tokens = { data.length, dtype = "int64" }, mask = { data.length, dtype = "bool" },
    patches = { patches, c.compress.width, dtype = "bfloat16" } })
  if c.itc.momentum > 0 then
    self.momentum = losses.Momentum(self, { momentum = c.itc.momentum, only = function(name)
      return name:find "^vision.*lora" or name:find "^compress" or name:find "^language" or name:find "^itc%.%a+_proj"
    end })
  end
  if c.average > 0 then
    self.average = losses.Momentum(self, { momentum = c.average, warmup = true, only = function(name)
      return name:find "lora_" or not name:find "^vision"
    end })
  end
  self.features = weft.train.features(c.features)
  self.features.dir, self.vary = data.dir and data.dir .. "/features", data.train.options
end

-- Patches of the encoder. While all of it is frozen each picture passes through it once.
function Stage1:patches(batch)
  if batch.varied or not self:features_usable() then return (self.vision(batch.pixels).patches) end
  local at = {}  -- where a row's pixels are
  for row = 1, #batch.image_ids do at[row] = row - 1 end
  for k, row in ipairs(batch.pixel_rows or {}) do at[row] = k - 1 end
  return (self.features:batch(batch.image_ids, function(rows)
    local places = {}
    for k, row in ipairs(rows) do places[k] = at[row] end
    local at_rows = weft.tensor(places, { dtype = "int64", device = batch.pixels.device })
    return self.vision(weft.index_select(batch.pixels, at_rows, 1)).patches
  end))
end

-- Before a step: what is known of the pictures is looked up, so that the step itself has the patches.
function Stage1:prepare(batch)
  if batch.varied or not self:features_usable() then return end
  batch.patches = weft.scope(function() return self:patches(batch) end):keep()
end

-- Its output is a function of what it sees: nothing in it trains.
function Stage1:features_usable()
  return self.training and self.features.enabled and self.vision:count(true) == 0
end
function Stage1:features_cached(id) return self:features_usable() and self.features:has(id) end
function Stage1:phase_changed()
  if self.vision:count(true) > 0 then self.features:clear() end
end

function Stage1:notes()
  local f, notes = self.features, {}
  if self.random_encoder then
    notes[1] = "encoder: random weights, frozen: no pretrained one is named (encoder.pretrained); only its adapter will train"
  end
  if self.begun_from then notes[#notes + 1] = "lora.init_from: " .. self.begun_from .. "; its own rank, scale and targets hold" end
  if f.enabled and weft.data.varies(self.vary, 1) then
    notes[#notes + 1] = "features: not kept, since data.flip or data.random_crop makes a picture differ from itself"
  elseif not f.enabled then
    notes[#notes + 1] = "features: not kept (features.enabled=false): the frozen encoder runs at every step"
  else
    notes[#notes + 1] = ("features: while the encoder is frozen each picture passes through it once; up to %d MiB are kept in memory, %d on disk")
      :format(f.budget / 2 ^ 20, f.disk_budget / 2 ^ 20)
  end
  return notes
end

-- dual: pooled features of both sides, before projection. In training the mean of a picture is over some of its
-- patches, drawn anew each time; how many does not matter, since projections are brought to one length.
function Stage1:dual(V, batch)
  local text = self.fusion:encode(batch.ids, { mask = batch.mask })
  local patches = V
  if self.training and self.patch_dropout.p > 0 then
    patches = V * self.patch_dropout(weft.ones { V:size(1), V:size(2), 1, dtype = V.dtype, device = V.device })
  end
  return patches:mean(2), models.pool.last_token(text, batch.mask)
end

function Stage1:losses(batch)
  local patches = batch.patches or self:patches(batch)
  local V = self.compress(patches)                                            -- [B, N, 128]
  local image, text = self:dual(V, batch)
  local frozen = self.vision:count(true) == 0
  local keys = self.momentum and self.momentum:with(function()
    local Vm = self.compress(frozen and patches or self.vision(batch.pixels).patches)
    local i, t = self.itc:project(self:dual(Vm, batch))
    return { image = i, text = t }
  end)
  local alike = self.likeness and self.likeness(batch.ids, batch.mask)
  local pair = self.itc(image, text, batch, self.queue, keys, alike)          -- dual pass
  local match = self.itm(function(v, ids, mask) return self.fusion:fuse(v, ids, { mask = mask }).feature end, V, pair, batch, self.queue)
  -- steps since the queue's rows were made, on average
  weft.recording.later({}, function()
    if self.queue:filled() > 0 then self.age = (batch.step or 0) - self.queue:get("step"):to("float64"):mean():item() end
  end)
  self.queue:push { image = pair.keys.image, text = pair.keys.text, ids = pair.keys.ids, captions = pair.keys.captions,
    step = function() return (weft.full { pair.batch, value = batch.step or 0, dtype = "int64" }) end,
    tokens = batch.ids, mask = batch.mask, patches = V:detach() }
  local z, kl
  if self.memory then z, kl = self.memory(V) end
  local caption = self.fusion:caption(V, z, batch.ids, { mask = batch.mask }) * batch.token_share   -- caption pass
  local t = batch.text
  local plain = t and self.fusion:plain(t.ids, { mask = t.mask }) * t.token_share                   -- text only
  return { itc = pair.loss, itm = match, lm = caption, text = plain, memory = kl }
end

-- --- what evaluation asks
-- Runs fn with the average of the weights over the last steps in their place, once there is one.
function Stage1:averaged(fn, ...)
  if not (self.average and self.average:begun()) then return fn(...) end
  return self.average:with(fn, ...)
end

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

---Captions of a batch's pictures as texts: greedy; of the best of `beams`; drawn from `top_p` with `seed`.
function Stage1:caption(batch, data, options)
  local V = self.compress(self.vision(batch.pixels).patches)
  local z = self.memory and self.memory(V) or nil
  local o = options or {}
  local out = self.fusion:generate(V, z, { bos = data.special.bos, eos = data.special.eos, pad = data.special.pad,
    max_new_tokens = data.length - 1, beams = o.beams or 1, sample = o.top_p ~= nil, top_p = o.top_p or 1, seed = o.seed or 0 })
  local texts = {}
  for i, ids in ipairs(out.ids:totable()) do texts[i] = data.tokenizer:decode(ids, { skip_special = true }) end
  return texts
end

for _, name in ipairs { "embed", "match", "caption_loss", "caption" } do
  local ask = Stage1[name]
  Stage1[name] = function(self, ...) return self:averaged(ask, self, ...) end
end

function Stage1:metrics()
  local c = self.itc.counts or {}
  return { itm_acc = self.itm.accuracy, itm_majority = self.itm.majority, itc_negatives = c.negatives, itc_same_picture = c.same_picture,
    itc_same_caption = c.same_caption, itc_skipped = self.itc.skipped,
    itm_skipped = self.itm.skipped_rows, itm_likeness = self.itm.likeness, tau = self.itc.tau:item(), queue = self.queue:filled(), queue_age = self.age }
end

-- What the last step compared with, in words.
function Stage1:left_out()
  local c = self.itc.counts or {}
  return ("negatives %s (%d same picture, %d same caption left out)"):format(nn.commas(c.negatives or 0), c.same_picture or 0, c.same_caption or 0)
end

-- Values of losses whose head ignores its input: what it pays to be compared with.
function Stage1:priors()
  local p = self.itm.majority
  return { itc = self.itc.counts and self.itc.counts.prior,
    itm = p and p < 1 and -p * math.log(p) - (1 - p) * math.log(1 - p) or nil }
end

-- What a run leaves beside its figures.
local function finish(run, result)
  run.model:averaged(peft.save, run.model.vision, run.dir .. "/adapter", { base = run.config.encoder.pretrained,
    preprocessing = weft.io.preprocess.of_run(run.data.train.options) })
  require("weft.report.sheet").write(run, run.dir .. "/samples", result.captions and result.captions.samples)
  require("weft.report.curves").write(run.dir)
  require("weft.report.tables").print(run, result)
end

-- Parts that no loss reaches when its weight is 0: frozen, so that nothing is thought to train.
local function unused(c)
  local w, out = c.weights, {}
  if w.itc == 0 then out[#out + 1] = "itc" end
  if w.itm == 0 then
    out[#out + 1] = "itm"
    for i = 0, c.fusion.layers - 1 do
      out[#out + 1] = ("fusion.image.%d%s"):format(i, i < c.fusion.layers - 1 and ".from_text" or "")
    end
  end
  if w.lm == 0 and c.memory.kind == "larimar" then out[#out + 1] = "memory" end
  if w.lm == 0 and w.itm == 0 then out[#out + 1] = "fusion" end
  return out
end

local function frozen(c, list)
  for _, name in ipairs(unused(c)) do list[#list + 1] = name end
  return list
end

return {
  Model = Stage1,
  finish = finish,
  heads = { "fusion", "itm" },
  metric = "retrieval.r_mean",
  after_warmup = { "lora.rank", "lora.alpha", "lora.scale", "lora.dropout", "lora.targets", "lora_lr", "lora_plus_ratio" },
  data = function(config, o) return (weft.data.captioned(config.data, o)) end,
  evaluate = { weft.eval.retrieval, weft.eval.itm, weft.eval.captions },
  phases = function(config)
    return {
      { name = "Phase 1", epochs = config.warmup_epochs, frozen = frozen(config, { "vision.base", "vision.lora" }) },
      { name = "Phase 2", frozen = frozen(config, { "vision.base" }), on_enter = config.phase_switch },
    }
  end,
}
