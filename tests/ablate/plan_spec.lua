local weft = require "weft"
local grid = require "weft.ablate.grid"
local Plan = require "weft.ablate.plan"

local RECIPE = "recipes/stage1.lua"

local function plan(words, more)
  local axes, fixed, computed = grid.parse(words)
  local o = { recipe = RECIPE, axes = axes, fixed = fixed, computed = computed }
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

  it("computes values from others, and keeps what a condition names, from the command line", function()
    assert.same({ "alpha8-rank4", "alpha16-rank8" }, names(plan { "lora.rank=4,8", "lora.alpha:=2 * lora.rank" }))
    assert.same({ "rank4-targetsquery+key" }, names(plan({ "lora.rank+lora.targets=4+[query,key],8+[query]" },
      { where = grid.condition "lora.rank < 8 and max(batch, 1) == 64" })))
    assert.error_matches(function() plan { "lora.rank=4,8", "lora.alpha:=2 * rank" } end, "lora.alpha: rank is no key of the config")
    assert.error_matches(function() plan { "lora.rank=4,8", "lora.alpha:=2 *" } end, "lora.alpha: a Lua expression such as")
  end)

  it("draws what the command line asks for, whole numbers between whole ends", function()
    local axes, _, _, draw = grid.parse { "lora.rank=2~64", "lora_lr=log:0.1~10", "lora.targets=~[query],[query,value]", "seed=1,2" }
    assert.equal(1, #axes)
    assert.same({ ["lora.rank"] = { 2, 64, whole = true }, lora_lr = { 0.1, 10, log = true },
      ["lora.targets"] = { choices = { "[query]", "[query,value]" } } }, draw)
    for _, point in ipairs(grid.random_axis { n = 20, draw = draw }) do
      local rank, rate = tonumber(point[1][2]), tonumber(point[3][2])
      assert.is_true(rank % 1 == 0 and rank >= 2 and rank <= 64 and rate >= 0.1 and rate <= 10)
      assert.truthy(point[2][2]:find "^%[query")
    end
    assert.error_matches(function() grid.random_axis { n = 2, draw = { lr = { 0, 1, lgo = true } } } end, "unknown key lgo; known: choices, log, whole")
    assert.error_matches(function() grid.random_axis { n = 2, draw = { lr = { 0, 1, log = true } } } end, "log wants numbers above 0")
  end)

  it("refuses a key that is swept twice", function()
    assert.error_matches(function() plan { "lora.rank=4,8", "lora.rank+lora.alpha=4+8,8+16" } end, "lora.rank is swept twice")
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

  it("takes ranges in tables, and words that are added to a plan's file", function()
    local ablate = require "weft.ablate"
    assert.same({ "seed1", "seed2", "seed3" }, names(weft.ablate { recipe = RECIPE, grid = { seed = "1..3" } }))
    ablate.set_next { axes = (grid.parse { "lora.rank=2,4" }), fixed = { "lr=0.5" }, share = false }
    local p = weft.ablate { recipe = RECIPE, grid = { seed = { 1 } }, fixed = { "lr=0.1" } }
    assert.same({ "rank2-seed1", "rank4-seed1" }, names(p))
    assert.equal(0, #p.warmups)
    assert.same({ "lr=0.1", "lr=0.5" }, p.fixed)
    assert.equal(1, #weft.ablate { recipe = RECIPE, grid = { seed = { 1 } } }.cells)  -- the words are gone
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
