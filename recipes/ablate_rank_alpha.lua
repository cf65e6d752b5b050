-- LoRA's rank and alpha on the quickstart's data: weft ablate recipes/ablate_rank_alpha.lua --jobs 2
-- Where the pictures lie: data.root, or the folder that bin/quickstart --data fills.
local weft = require "weft"

local cache = os.getenv "XDG_CACHE_HOME" or (os.getenv "HOME" or "/tmp") .. "/.cache"

return weft.ablate {
  recipe = "recipes/quickstart.lua",
  fixed = { "data.root=" .. cache .. "/weft/stamps", "data.limit=256", "warmup_epochs=6", "epochs=14", "encoder.layers=2",
    "encoder.width=128", "language.layers=2", "language.width=96", "language.ff=256", "fusion.layers=1", "lora_lr=4", "checkpoint_every=50" },
  grid = { ["lora.rank"] = { 2, 8, 32 }, ["lora.alpha"] = { 8, 64 }, seed = { 1, 2, 3 } },
  metric = "retrieval.r_mean",
  shared_until = "Phase 1",
}
