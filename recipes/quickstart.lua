-- The whole of stage 1, small: two phases on captioned pictures, in minutes on a CPU.
-- The encoder has DINOv2's architecture, random weights, and stays frozen: LoRA adapts it in phase 2.
local weft = require "weft"
local parts = require "vision_language"

local config = weft.config {
  seed = 1,
  encoder = { pretrained = "", width = 256, layers = 4, heads = 4, image = 112, patch = 14, init_range = 0.02 },
  lora = { rank = 16, alpha = 32, dropout = 0.1, targets = { "query", "value" } },
  compress = { hidden = 256, width = 128, dropout = 0.2 },
  language = { width = 192, layers = 2, ff = 512, heads = 3, dropout = 0.1 },
  fusion = { layers = 1, heads = 4, ff = 256, gate = 0.5 },
  memory = { kind = "larimar", slots = 32 },
  -- negatives from the batch: on so few pictures a queue without a slow copy of the model (itc.momentum
  -- near 1) holds features that are stale within a step
  itc = { dim = 128, queue = 1, tau = 0.07, alpha = 0.0, momentum = 0.0, patch_dropout = 0.6, like = 0.5 },
  itm = { source = "batch" },
  weights = { itc = 1.0, itm = 0.25, lm = 0.5, memory = 0.1 },

  -- so few pictures are soon known by heart: one cosine over both phases (extend), few epochs, targets that follow
  -- the words that captions share, pictures cut anew once the encoder adapts, and averaged weights hold out longest
  warmup_epochs = 8, epochs = 24, phase_switch = "extend",
  batch = 32, accumulate = 1, lr = 5e-4, lora_lr = 4, head_lr = 6, lora_plus_ratio = 1,
  weight_decay = 0.05, betas = { 0.9, 0.98 }, eps = 1e-8, clip = 1.0, warmup_steps = 50, lr_floor = 0.1, average = 0.99,

  features = { enabled = true, memory = 256, disk = 0 },
  data = { kind = "auto", root = "", held_out = 0.2, length = 24, vocab = 800, tokenizer = "", size = 112, resize = 112, fit = "stretch",
    threads = 2, cache = 64, flip = false, random_crop = 0.8, vary_after = 8, limit = 0 },
  checkpoint_every = 200, keep_checkpoints = 2, log_every = 20, device = "cpu", dtype = "float32", graph = false,
}

return weft.train.recipe {
  config = config, model = parts.Model, data = parts.data, phases = parts.phases(config), heads = parts.heads,
  evaluate = parts.evaluate, finish = parts.finish,
  metric = parts.metric, after_warmup = parts.after_warmup,
}
