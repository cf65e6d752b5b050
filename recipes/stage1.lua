-- Stage 1: pictures and captions learn to find each other.
-- Phase 1 trains all but the LoRA adapters; phase 2 trains them too, with a new optimizer.
local weft = require "weft"
local parts = require "vision_language"

local config = weft.config {
  seed = 1,
  encoder = { pretrained = "facebook/dinov2-base", width = 768, layers = 12, heads = 12, image = 518, patch = 14, init_range = 0.02 },
  lora = { rank = 16, alpha = 32, scale = 0, dropout = 0.1, targets = { "query", "value" }, init_from = "" },  -- scale: in place of alpha
  compress = { hidden = 384, width = 128, dropout = 0.1 },
  language = { width = 384, layers = 7, ff = 1024, heads = 6, dropout = 0.0 },
  fusion = { layers = 4, heads = 4, ff = 512, gate = 0 },
  memory = { kind = "larimar", slots = 32 },
  itc = { dim = 256, queue = 4096, tau = 0.07, alpha = 0.0, momentum = 0.0, patch_dropout = 0, like = 0 },
  itm = { source = "queue" },
  weights = { itc = 1.0, itm = 0.5, lm = 1.0, text = 1.0, memory = 0.1 },

  warmup_epochs = 5, epochs = 50, phase_switch = "rebuild",
  batch = 64, accumulate = 2, lr = 2e-4, lora_lr = 1, head_lr = 1, lora_plus_ratio = 1,
  weight_decay = 0.05, betas = { 0.9, 0.98 }, eps = 1e-8, clip = 1.0, warmup_steps = 1000, lr_floor = 0.1, average = 0,

  features = { enabled = true, memory = 1024, disk = 0 },
  data = { kind = "auto", root = "", held_out = 0.1, length = 40, vocab = 32768, tokenizer = "", size = 224, resize = 256, fit = "crop",
    threads = 2, cache = 512, flip = false, random_crop = 1, vary_after = 0, limit = 0, text = "",
    identify = "content" },  -- "path": no picture is opened before it is needed, for lists of millions
  checkpoint_every = 500, keep_checkpoints = 2, log_every = 20,
  device = "cpu", dtype = "float32",  -- "cuda" and "bfloat16" on a GPU
  graph = false,                      -- on a GPU: the whole step as one CUDA graph
}

return weft.train.recipe {
  config = config, model = parts.Model, data = parts.data, phases = parts.phases(config), heads = parts.heads,
  evaluate = parts.evaluate, finish = parts.finish,
  metric = parts.metric, after_warmup = parts.after_warmup,
}
