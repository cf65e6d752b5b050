local weft = require "weft"
local grid = require "weft.ablate.grid"
local Plan = require "weft.ablate.plan"

local RECIPE = "recipes/stage1.lua"

local function plan(words, more)
  local axes, fixed = grid.parse(words)
  local o = { recipe = RECIPE, axes = axes, fixed = fixed }
  for k, v in pairs(more or {}) do o[k] = v end
  return Plan.new(o)
end

local function names(p)
  local out = {}
  for i, c in ipairs(p.cells) do out[i] = c.name end
  return out
end

describe("an ablation's plan", function()
  it("is the product of the lists, seeds fastest, cells named by their values", function()
    local p = plan { "seed=1,2", "lora.rank=4,8", "lr=0.01" }
    assert.same({ "rank4-seed1", "rank4-seed2", "rank8-seed1", "rank8-seed2" }, names(p))
    assert.same({ "lr=0.01" }, p.fixed)
  end)

  it("knows ranges, lists as values and zipped keys", function()
    assert.same({ "seed1", "seed2", "seed3" }, names(plan { "seed=1..3" }))
    assert.same({ "dropout0", "dropout0.1", "dropout0.2" }, names(plan { "lora.dropout=0..0.2..0.1" }))
    assert.same({ "targetsquery", "targetsquery+value" }, names(plan { "lora.targets=[query],[query,value]" }))
    assert.same({ "alpha8-rank4", "alpha16-rank8" }, names(plan { "lora.rank+lora.alpha=4+8,8+16" }))
  end)

  it("refuses an unknown key with the nearest, and a value of the wrong type", function()
    assert.error_matches(function() plan { "lora.rnak=4,8" } end, "unknown key lora.rnak; did you mean lora.rank")
    assert.error_matches(function() plan { "lora.rank=4,eight" } end, "a number such as 16 is expected")
    assert.error_matches(function() plan { "lora.rank+lora.alpha=4+8,8" } end, "2 values joined by %+")
  end)

  it("shares the first phase among cells that differ only in declared keys", function()
    local p = plan { "lora.rank=4,8,16", "lora.alpha=16,32", "seed=1,2" }
    assert.equal(2, #p.warmups)
    assert.equal(6, p.warmups[1].users)
    assert.equal("Phase 1", p.warmups[1].phase)
    assert.equal(0, #plan({ "lr=0.1,0.2" }).warmups)
    assert.equal(0, #plan({ "lora.rank=4,8" }, { share = false }).warmups)
  end)

  it("counts what sharing saves", function()
    local p = plan { "lora.rank=4,8,16", "warmup_epochs=5", "epochs=10" }
    assert.near(0.5 + 3 * 0.5, p:cost(), 1e-9)
  end)

  it("takes conditions, computed values and settings from Lua", function()
    local p = weft.ablate { recipe = RECIPE, grid = { ["lora.rank"] = { 4, 8, 16 }, ["lora.alpha"] = function(c) return 2 * c.lora.rank end },
      where = function(c) return c.lora.rank ~= 8 end, set = function(c) return { lora_lr = 1 / c.lora.rank } end }
    assert.same({ "alpha8-rank4-lora_lr0.25", "alpha32-rank16-lora_lr0.0625" }, names(p))
    assert.error_matches(function() weft.ablate { recipe = RECIPE, grid = { seed = { 1 } }, where = function() return false end } end,
      "no cell is left")
  end)

  it("draws at random, keyed by seed, key and number", function()
    local function draw(n, seed)
      return names(weft.ablate { recipe = RECIPE, random = { n = n, seed = seed, draw = { lora_lr = { 0.1, 10, log = true } } } })
    end
    local three, five = draw(3, 1), draw(5, 1)
    for i = 1, 3 do assert.equal(three[i], five[i]) end
    assert.not_same(three, draw(3, 2))
  end)

  it("refuses to share up to another phase than the first", function()
    assert.error_matches(function()
      weft.ablate { recipe = RECIPE, grid = { ["lora.rank"] = { 4, 8 } }, shared_until = "Phase 2" }
    end, "what can be shared ends with Phase 1")
  end)
end)
