require "weft"
local tables = require "weft.ablate.table"
local View = require "weft.ablate.view"

describe("the table while an ablation runs", function()
  local plan = { keys = { "lora.alpha", "lora.rank", "seed" }, labels = { ["lora.alpha"] = "alpha", ["lora.rank"] = "rank", seed = "seed" },
    metric = "retrieval.r_mean", cells = {}, warmups = {} }
  function plan.cost() return 2 end
  function plan.own_share() return 1 end
  local function found(n)
    local out = { plan = plan, settings = {}, cells = {}, warmups = { { name = "w1", state = "running", progress = { step = 3, steps = 12 } } } }
    for i = 1, n do
      out.settings[i] = { values = { ["lora.alpha"] = "16", ["lora.rank"] = tostring(i) }, n = 1, cells = 3, mean = 0.5 / i, spread = 0.01,
        trainable = 1234567, seconds = 12.5, running = 1, waiting = 1, best = i == 1 or nil }
      out.cells[i] = { name = "rank" .. i, state = i == 1 and "running" or "waiting", progress = i == 1 and { step = 5, steps = 12, loss = 1.5 } or nil }
    end
    return out
  end

  it("fits the terminal: what is known only at the end goes first, then the last settings", function()
    local view = View.new(plan, "nowhere", { quiet = true, expected = 600 })
    local wide, narrow = view:block(found(3), 120, 24), view:block(found(3), 80, 24)
    assert.truthy(wide[1]:find("trainable", 1, true))
    assert.falsy(narrow[1]:find("trainable", 1, true))
    assert.truthy(narrow[2]:find("^%*.* 1 running, 1 waiting$"), narrow[2])
    local short = view:block(found(40), 40, 12)
    assert.is_true(#short < 12)
    for _, line in ipairs(short) do assert.is_true(#line < 40) end
    assert.truthy(table.concat(short, "\n"):find("and %d+ settings more"))
  end)

  it("says what is at work, how far it is, and how long it may take", function()
    local view = View.new(plan, "nowhere", { quiet = true, expected = 600 })
    local lines = view:block(found(2), 120, 24)
    assert.equal("running: warm-up w1 at step 3 of 12", lines[#lines - 2])
    assert.equal("running: rank1 at step 5 of 12, loss 1.500", lines[#lines - 1])
    assert.equal("0 of 2 cells done; 0 s so far, about 10 min left", lines[#lines])
  end)

  it("names what was pruned, and why, below the table", function()
    local f = found(2)
    f.settings[2].pruned_why, f.settings[2].pruned = "pruned after epoch 2: m 0.1, the last one kept 0.5", 3
    f.flags, f.verdict = {}, {}
    local text = table.concat(tables.lines(f), "\n")
    assert.truthy(text:find("3 pruned", 1, true), text)
    assert.truthy(text:find("alpha 16, rank 2: pruned after epoch 2: m 0.1, the last one kept 0.5", 1, true), text)
  end)
end)
