require "weft"

describe("the grid that ships", function()
  it("is a plan over rank and alpha whose warm-ups are shared", function()
    local plan = assert(loadfile "recipes/ablate_rank_alpha.lua")()
    assert.is_true(plan.is_ablation)
    assert.same({ "lora.alpha", "lora.rank", "seed" }, plan.keys)
    assert.equal(18, #plan.cells)
    assert.equal(3, #plan.warmups)
    assert.is_true(plan:cost() < 0.65 * #plan.cells)
  end)
end)
