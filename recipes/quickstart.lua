-- The whole of stage 1, small: two phases on captioned pictures, in minutes on a CPU.
-- The encoder has DINOv2's architecture, random weights, and stays frozen: LoRA adapts it in phase 2.
local weft = require "weft"
local parts = require "vision_language"

local config = weft.config {
  seed = 1,
  encoder = { pretrained = "", width = 256, layers = 4, heads = 4, image = 112, patch = 14, init_range = 0.02 },
  lora = { rank = 16, alpha = 32, dropout = 0.1, targets = { "query", "value" } },
  compress = { hidden = 256, width = 128, dropout = 0.1 },
  language = { width = 192, layers = 4, ff = 512, heads = 3, dropout = 0.0 },
  fusion = { layers = 2, heads = 4, ff = 256 },
  memory = { kind = "larimar", slots = 32 },
  itc = { dim = 128, queue = 512, tau = 0.07, alpha = 0.0, momentum = 0.0 },
  itm = { source = "queue" },
  weights = { itc = 1.0, itm = 0.5, lm = 1.0, memory = 0.1 },

  warmup_epochs = 6, epochs = 24, phase_switch = "rebuild",
  batch = 32, accumulate = 1, lr = 1e-3, lora_lr = 1, head_lr = 1, lora_plus_ratio = 1,
  weight_decay = 0.05, betas = { 0.9, 0.98 }, eps = 1e-8, clip = 1.0, warmup_steps = 50, lr_floor = 0.1,

  features = { enabled = true, memory = 256, disk = 0 },
  data = { kind = "auto", root = "", held_out = 0.2, length = 24, vocab = 1024, tokenizer = "", size = 112, resize = 112, fit = "stretch",
    threads = 2, cache = 64, flip = false, limit = 0 },
  checkpoint_every = 0, keep_checkpoints = 2, log_every = 20,
}

return weft.train.recipe {
  config = config, model = parts.Model, data = parts.data, phases = parts.phases(config), heads = parts.heads,
  evaluate = parts.evaluate, finish = parts.finish,
  metric = parts.metric, after_warmup = parts.after_warmup,
}
