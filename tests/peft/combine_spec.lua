-- combine_spec.lua: adapters made out of others, against PEFT's, and by what their formulas promise.
local weft = require "weft"
local near = require "tests.support.near"
local safetensors = require "weft.io.safetensors"
local nn, peft = weft.nn, weft.peft

local Net = nn.Module "CombineNet"
function Net:init(n_in, n_out) self.first, self.second = nn.Linear(n_in, n_out), nn.Linear(n_out, n_out) end
function Net:forward(x) return self.second(self.first(x)) end

local golden = assert(safetensors.load "tests/golden/lora_combine.safetensors")

-- The golden's layer with its two adapters.
local function pair()
  local m = Net(24, 16):initialize(1)
  weft.no_grad(function() m.first.weight:copy_(golden.weight) end)
  peft.lora(m, { rank = 4, alpha = 8, targets = { "first" }, adapter = "a" })
  peft.lora(m, { rank = 4, alpha = 4, targets = { "first" }, adapter = "b" })
  weft.no_grad(function()
    for _, name in ipairs { "a", "b" } do
      m.first.lora_A[name].weight:copy_(golden[name .. ".lora_A"])
      m.first.lora_B[name].weight:copy_(golden[name .. ".lora_B"])
    end
  end)
  return m
end

local function combined(kind, more)
  local o = { adapters = { "a", "b" }, weights = { 0.7, 0.4 }, combination = kind, adapter = "both" }
  for k, v in pairs(more or {}) do o[k] = v end
  return peft.add_weighted_adapter(pair(), o)
end

local function sum_of(m)
  return m.first:delta "a" * 0.7 + m.first:delta "b" * 0.4
end

describe("a combination of adapters", function()
  for kind, more in pairs { cat = {}, linear = {}, ties = { density = 0.5 }, magnitude_prune = { density = 0.5 } } do
    it("has the A and B that PEFT makes by " .. kind, function()
      local m = combined(kind, more)
      near.near(m.first.lora_A.both.weight, golden[kind .. ".lora_A"], 2e-6, "A")
      near.near(m.first.lora_B.both.weight, golden[kind .. ".lora_B"], 2e-6, "B")
      near.near(m.first:delta "both", golden[kind .. ".delta"], 5e-6, "delta")
    end)
  end

  it("has the delta that PEFT makes by svd where that is asked for", function()
    near.near(combined("svd", { rank = 3, peft_compat = true }).first:delta "both", golden["svd.delta"], 5e-6)
  end)

  it("counts the scale once by svd, and is exact at a sufficient rank", function()
    local m = combined("svd", { rank = 8 })
    near.near(m.first:delta "both", sum_of(m), 5e-6)
    local compat = combined("svd", { rank = 8, peft_compat = true })
    assert.is_true((compat.first:delta "both" - sum_of(compat)):abs():max():item() > 0.1)
  end)

  it("is the exact weighted sum by cat, also with negative weights", function()
    local m = combined("cat", { weights = { 0.7, -1.5 } })
    near.near(m.first:delta "both", m.first:delta "a" * 0.7 - m.first:delta "b" * 1.5, 5e-6)
    assert.equal(8, m.first.settings.both.rank)
    assert.equal(1, m.first:scale_of "both")
  end)

  it("takes the sign of a negative weight into A by linear", function()
    local one = peft.add_weighted_adapter(pair(), { adapters = { "a" }, weights = { -0.5 }, combination = "linear", adapter = "both" })
    near.near(one.first:delta "both", one.first:delta "a" * -0.5, 5e-6)
  end)

  it("drops the same values for the same seed by dare, about as many as density says, and grows the rest", function()
    local m, again = combined("dare_linear", { density = 0.25, seed = 3 }), combined("dare_linear", { density = 0.25, seed = 3 })
    local other = combined("dare_linear", { density = 0.25, seed = 4 })
    local a = m.first.lora_A.both.weight
    near.near(a, again.first.lora_A.both.weight, 0)
    assert.is_true((a - other.first.lora_A.both.weight):abs():max():item() > 0)
    local single = peft.add_weighted_adapter(pair(), { adapters = { "b" }, combination = "dare_linear", density = 0.25,
      adapter = "both", seed = 1 })
    local got, from, kept = single.first.lora_A.both.weight:detach():contiguous():data(), golden["b.lora_A"]:contiguous():data(), 0
    for i = 0, 4 * 24 - 1 do
      if got[i] ~= 0 then
        kept = kept + 1
        assert.near(from[i] * 4, got[i], 1e-5)
      end
    end
    assert.is_true(kept > 8 and kept < 48, kept)
  end)

  it("gives ties from dare_ties, and linear from dare_linear, at density 1", function()
    local function same(x, y) near.near(x.first:delta "both", y.first:delta "both", 5e-6) end
    same(combined("dare_linear", { density = 1 }), combined "linear")
    same(combined("dare_ties", { density = 1 }), combined("ties", { density = 1 }))
  end)

  it("is frozen, is used once activated, and goes away again", function()
    local m = combined "cat"
    assert.is_false(m.first.lora_A.both.weight.requires_grad)
    assert.same({ "a" }, peft.active(m))
    local x = weft.randn { 3, 24 }
    local base = peft.disable(m, m, x)
    peft.activate(m, "both")
    local y = m(x)
    peft.activate(m, { "a", "b" })
    peft.scale(m, 0.7, "a")
    peft.scale(m, 0.4, "b")
    near.near(y, m(x), 1e-5)
    assert.is_true((y - base):abs():max():item() > 1e-3)
    peft.delete(m, "both")
    assert.same({ "a", "b" }, peft.adapters(m))
  end)

  it("joins adapters on different modules and of different ranks, and survives its files", function()
    local m = Net(6, 6):initialize(1)
    peft.lora(m, { rank = 2, alpha = 4, targets = { "first" }, adapter = "a", init = "random" })
    peft.lora(m, { rank = 3, alpha = 3, targets = { "first", "second" }, adapter = "b", init = "random" })
    peft.add_weighted_adapter(m, { adapters = { "a", "b" }, weights = { 1, 2 }, adapter = "both" })
    near.near(m.first:delta "both", m.first:delta "a" + m.first:delta "b" * 2, 5e-6)
    near.near(m.second:delta "both", m.second:delta "b" * 2, 5e-6)
    assert.equal(5, m.first.settings.both.rank)
    assert.equal(3, m.second.settings.both.rank)
    local dir = os.tmpname()
    os.remove(dir)
    peft.save(m, dir, { adapter = "both" })
    local plain = peft.load(Net(6, 6):initialize(1), dir, { force = true })
    near.near(plain.first:delta "default", m.first:delta "both", 0)
    near.near(plain.second:delta "default", m.second:delta "both", 0)
    os.execute(("rm -rf '%s'"):format(dir))
  end)

  it("refuses names that modules use themselves", function()
    for _, name in ipairs { "new", "type", "training", "forward", "_order" } do
      local ok, text = pcall(peft.lora, Net(6, 6):initialize(1), { targets = { "first" }, adapter = name })
      assert.is_false(ok)
      assert.matches("choose another", text)
    end
  end)

  it("says what does not fit, and changes nothing then", function()
    local m = pair()
    local function refuses(pattern, more)
      local o = { adapters = { "a", "b" }, adapter = "both" }
      for k, v in pairs(more) do o[k] = v end
      local ok, text = pcall(peft.add_weighted_adapter, m, o)
      assert.is_false(ok)
      assert.matches(pattern, text)
      assert.same({ "a", "b" }, peft.adapters(m))
    end
    refuses("no adapter c", { adapters = { "a", "c" } })
    refuses("did you mean ties", { combination = "tie" })
    refuses("ties: density in %(0, 1%] is expected, got nil", { combination = "ties" })
    refuses("there is an adapter a already", { adapter = "a" })
    refuses("3 weights for 2 adapters", { weights = { 1, 2, 3 } })
    peft.lora(m, { rank = 2, targets = { "first" }, adapter = "thin" })
    local ok, text = pcall(peft.add_weighted_adapter, m, { adapters = { "a", "thin" }, combination = "linear", adapter = "both" })
    assert.is_false(ok)
    assert.matches("ranks 4 and 2; linear needs equal ones", text)
  end)
end)
