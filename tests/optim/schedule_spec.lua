-- schedule_spec.lua: learning rate factors as functions of the step.
local schedule = require("weft").optim.schedule

local function close(a, b) assert.is_true(math.abs(a - b) < 1e-12, ("%.15g is not %.15g"):format(a, b)) end

describe("a schedule", function()
  it("warms up as (s + 1) / w", function()
    local f = schedule.warmup { steps = 4 }
    close(f(0), 0.25)
    close(f(3), 1)
    close(f(100), 1)
    close(schedule.warmup { steps = 2, next = schedule.constant(0.5) }(2), 0.5)
    close(schedule.warmup { steps = 0 }(0), 1)
  end)

  it("falls along a cosine to its floor after the warm-up", function()
    local f = schedule.cosine { steps = 24, warmup = 5 }
    close(f(0), 0.2)
    close(f(4), 1)
    close(f(5), 1)
    close(f(10), 0.5 * (1 + math.cos(math.pi * 5 / 19)))
    close(f(21), 0.1)
    close(f(23), 0.1)
    close(f(1000), 0.1)
    assert.is_true(f(20) > 0.1)
    close(schedule.cosine { steps = 10, floor = 0 }(5), 0.5)
  end)

  it("runs in a line", function()
    local f = schedule.linear { steps = 10 }
    close(f(0), 1)
    close(f(5), 0.5)
    close(f(10), 0)
    close(f(11), 0)
    close(schedule.linear { steps = 4, from = 0.2, to = 0.6 }(1), 0.3)
  end)

  it("composes: one after the other, as a product, and from a later step", function()
    local f = schedule.sequence { { schedule.warmup { steps = 2 }, 2 }, { schedule.linear { steps = 4 }, 4 }, { schedule.constant(0.05) } }
    close(f(0), 0.5)
    close(f(2), 1)
    close(f(4), 0.5)
    close(f(6), 0.05)
    local main = schedule.cosine { steps = 100 }
    local late = schedule.product(main, schedule.from(50, schedule.warmup { steps = 10 }))
    close(late(49), 0)
    close(late(50), main(50) / 10)
    close(late(70), main(70))
  end)

  it("refuses what makes no curve", function()
    assert.has_error(function() schedule.cosine { steps = 10, warmup = 11 } end)
    assert.has_error(function() schedule.cosine {} end)
    assert.has_error(function() schedule.warmup { steps = 1.5 } end)
    assert.has_error(function() schedule.cosine { stesp = 10 } end)
    assert.has_error(function() schedule.sequence {} end)
    assert.has_error(function() schedule.product(schedule.constant(), 2) end)
  end)
end)
