-- momentum_spec.lua: a slow copy of parameters that stands in for them.
local weft = require "weft"
local compare = require "tests.models.compare"
local nn = weft.nn
local Momentum = require "weft.losses.momentum"

local function make()
  local net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)):initialize(1)
  return net, Momentum(net, { momentum = 0.9 })
end
local function nudge(net, by)
  weft.no_grad(function()
    for _, t in net:named_parameters() do t:add_(by) end
  end)
end

describe("Momentum", function()
  local x = weft.randn { 5, 3 }

  it("begins equal to the parameters as they are when first used", function()
    local net, slow = make()
    net:initialize(77)
    assert.is_true(compare.same(slow:with(net.call, net, x), net(x)))
  end)

  it("moves by 1 - m towards the parameters", function()
    local net, slow = make()
    slow:with(function() end)
    local before = net[1].weight:clone()
    nudge(net, 1)
    slow:after_step()
    slow:with(function() compare.close(net[1].weight, before + 0.1, 1e-6) end)
    slow:after_step()
    slow:with(function() compare.close(net[1].weight, before + 0.19, 1e-6) end)
    compare.close(net[1].weight, before + 1, 1e-6)
  end)

  it("warms up when it is told to: the first move goes nine tenths of the way", function()
    local net = make()
    local slow = Momentum(net, { momentum = 0.9, warmup = true })
    assert.is_false(slow:begun())
    slow:reset()
    assert.is_true(slow:begun())
    local before = net[1].weight:clone()
    nudge(net, 1)
    slow:after_step()
    slow:with(function() compare.close(net[1].weight, before + 0.9, 1e-6) end)
    slow:after_step()
    slow:with(function() compare.close(net[1].weight, before + (1 - 0.1 * 2 / 11), 1e-6) end)
    -- the count is part of its state
    local copy = Momentum(make(), { momentum = 0.9, warmup = true })
    copy:load_state_dict(slow:state_dict())
    assert.equal(3, copy.started:item())
  end)

  it("records nothing, and puts parameters back also after an error", function()
    local net, slow = make()
    local y = slow:with(function() return net(x) end)
    assert.is_false(y.requires_grad)
    local before = net[1].weight
    assert.is_false(pcall(slow.with, slow, function() error "stop" end))
    assert.is_true(net[1].weight == before)
    assert.is_true(net(x).requires_grad)
  end)

  it("comes back from its state", function()
    local net, slow = make()
    slow:with(function() end)
    nudge(net, 1)
    slow:after_step()
    local again, copy = make()
    again:load_state_dict(net:state_dict())
    copy:load_state_dict(slow:state_dict())
    assert.is_true(compare.same(slow:with(net.call, net, x), copy:with(again.call, again, x)))
  end)

  it("follows only what it is told to", function()
    local net = make()
    local slow = Momentum(net, { momentum = 0.5, only = function(name) return name:find "^0" end })
    assert.equal(2, #slow.places)
    assert.is_false(pcall(Momentum, net, { only = function() return false end }))
    assert.is_false(pcall(Momentum, net, { momentum = 1 }))
  end)
end)
