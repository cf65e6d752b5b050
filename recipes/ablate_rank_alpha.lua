-- LoRA's rank and alpha on the quickstart's data: weft ablate recipes/ablate_rank_alpha.lua --jobs 2
-- Where the pictures lie: data.root, or the folder that bin/quickstart --data fills.
local weft = require "weft"

local cache = os.getenv "XDG_CACHE_HOME" or (os.getenv "HOME" or "/tmp") .. "/.cache"

return weft.ablate {
  recipe = "recipes/quickstart.lua",
  fixed = { "data.root=" .. cache .. "/weft/stamps", "data.limit=256", "warmup_epochs=5", "epochs=10", "encoder.layers=2",
    "encoder.width=128", "language.layers=2", "language.width=96", "language.ff=256", "fusion.layers=1", "checkpoint_every=8" },
  grid = { ["lora.rank"] = { 4, 16 }, ["lora.alpha"] = { 16, 32 }, seed = { 1, 2 } },
  metric = "retrieval.r_mean",
  shared_until = "Phase 1",
}
