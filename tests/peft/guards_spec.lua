-- guards_spec.lua: what keeps adapters from doing what nobody meant: switches that imply nothing, adapters
-- that change nothing, merging in too little precision, positions by another rule.
local weft = require "weft"
local near = require "tests.support.near"
local run = require "tests.support.command"
local dinov2 = require "weft.models.dinov2"
local nn, peft = weft.nn, weft.peft

local function message(fn, ...)
  local ok, text = pcall(fn, ...)
  assert.is_false(ok, "an error was expected")
  return text
end

local Net = nn.Module "Net"
function Net:init() self.query, self.value = nn.Linear(5, 5), nn.Linear(5, 3) end
function Net:forward(x) return self.value(self.query(x):tanh()) end

local function fill(t, stream)
  local shape = t.shape
  shape.rng = stream
  t:copy_(weft.randn(shape) * 0.4)
end

-- What the adapters of a net should be, kept by hand: name -> trains, strength, on (modules), deltas.
local function replay(seed, steps)
  local state = seed
  local function pick(n)  -- a number in 1..n; Lehmer's generator
    state = state * 48271 % 2147483647
    return state % n + 1
  end
  local m = Net():initialize(seed)
  local base = { query = m.query.weight:clone(), value = m.value.weight:clone() }
  local x, stream = weft.randn { 4, 5 }, weft.random.stream("guards", seed)
  local known, order, active, log = {}, {}, {}, {}

  local function is_active(name)
    for _, a in ipairs(active) do
      if a == name then return true end
    end
    return false
  end

  local function add()
    local name = ("abcd"):sub(pick(4), -1):sub(1, 1)
    if known[name] then return "add " .. name, message(peft.lora, m, { adapter = name }) end
    local on = ({ { "query" }, { "value" }, { "query", "value" } })[pick(3)]
    local rank = pick(3)
    peft.lora(m, { adapter = name, rank = rank, alpha = 2 * rank, targets = on })
    weft.no_grad(function()
      for _, where in ipairs(on) do fill(m[where].lora_B[name].weight, stream) end
    end)
    known[name] = { trains = true, strength = 1, on = on, delta = {} }
    for _, where in ipairs(on) do known[name].delta[where] = m[where]:delta(name):detach():clone() end
    order[#order + 1] = name
    if #order == 1 then active = { name } end
    return "add " .. name
  end
  local function some() return order[pick(#order)] end
  local moves = {
    add, add,
    function()
      active = {}
      for _, name in ipairs(order) do
        if pick(2) == 1 then active[#active + 1] = name end
      end
      peft.activate(m, active)
      return "activate " .. table.concat(active, ",")
    end,
    function()
      local name, on = some(), pick(2) == 1
      peft[on and "unfreeze" or "freeze"](m, name)
      known[name].trains = on
      return (on and "unfreeze " or "freeze ") .. name
    end,
    function()
      local name, s = some(), pick(5) / 2
      peft.scale(m, s, name)
      known[name].strength = s
      return ("scale %s %g"):format(name, s)
    end,
    function()
      local fails = pick(2) == 1
      pcall(peft.disable, m, function()
        local plain = weft.linear(weft.linear(x, base.query, m.query.bias or m.query.base_layer.bias):tanh(), base.value,
          m.value.bias or m.value.base_layer.bias)
        near.near(m(x), plain, 1e-5, "disabled")
        if fails then error "on purpose" end
      end)
      return "disable"
    end,
    function()
      if #active == 0 then return "nothing" end
      peft.merge(m)
      peft.unmerge(m)
      return "merge, unmerge"
    end,
    function()
      local name = some()
      peft.delete(m, name)
      known[name] = nil
      for _, list in ipairs { order, active } do
        for i = #list, 1, -1 do
          if list[i] == name then table.remove(list, i) end
        end
      end
      return "delete " .. name
    end,
  }

  for _ = 1, steps do
    log[#log + 1] = moves[#order == 0 and 1 or pick(#moves)]()
    local so_far = table.concat(log, "; ")
    assert.same(order, peft.adapters(m), so_far)
    assert.same(active, peft.active(m), so_far)
    local weights = { query = base.query, value = base.value }
    for name, k in pairs(known) do
      for _, where in ipairs(k.on) do
        for _, e in ipairs(m[where]:tensors(name)) do assert.equal(k.trains, e.tensor.requires_grad, so_far) end
        if is_active(name) then weights[where] = weights[where] + k.delta[where] * k.strength end
      end
    end
    local layers = {}
    for where in pairs(base) do
      layers[where] = m[where].base_layer or m[where]
      assert.equal(m[where].is_lora == true, layers[where] ~= m[where], so_far)
      assert.is_true(near.same(layers[where].weight, base[where]), so_far)
      assert.is_false(layers[where].weight.requires_grad, so_far)
    end
    near.near(weft.no_grad(m, x), weft.no_grad(function()
      return weft.linear(weft.linear(x, weights.query, layers.query.bias):tanh(), weights.value, layers.value.bias)
    end), 1e-5, so_far)
  end
end

describe("adapters that are added, switched, scaled, disabled, merged and deleted at random", function()
  for seed = 1, 20 do
    it("are what was asked for, each switch by itself: seed " .. seed, function()
      weft.scope(replay, seed, 40)
    end)
  end
end)

describe("an adapter that changes nothing", function()
  local idle = require("weft.peft.merge").idle
  local function lora(o)
    local settings = { rank = 2, targets = { "query" } }
    for k, v in pairs(o or {}) do settings[k] = v end
    return peft.lora(Net():initialize(1), settings)
  end

  it("is not merged, unless forced", function()
    for _, how in ipairs { "merge", "merge_and_unload" } do
      local m = lora()
      assert.matches("the adapter default changes nothing: every B is zero", message(peft[how], m), 1, true)
      assert.is_false(m.query.merged)
    end
    local m = lora()
    peft.merge_and_unload((peft.merge(m, { force = true })))
    assert.equal("Linear", m.query.type)
  end)

  it("is told from one that does anything at all", function()
    assert.same({ "default" }, idle(lora()))
    assert.same({ "default" }, idle(lora { dora = true }))
    assert.same({ "default" }, idle(lora { lora_bias = true }))
    assert.same({}, idle(Net()))
    assert.same({}, idle(lora { bias = "all" }))
    assert.same({}, idle(lora { modules_to_save = { "value" } }))
    for kind, field in pairs { plain = "lora_B", dora = "lora_magnitude_vector", lora_bias = "lora_B" } do
      local m = lora { dora = kind == "dora", lora_bias = kind == "lora_bias" }
      weft.no_grad(function()
        local part = m.query[field].default
        if kind == "lora_bias" then part.bias:add_(0.1) else part.weight:add_(0.1) end
      end)
      assert.same({}, idle(m), kind)
    end
    -- of several, only the active ones count
    local m = lora()
    peft.lora(m, { adapter = "other", rank = 2, targets = { "value" } })
    assert.same({ "default" }, idle(m))
    peft.activate(m, { "default", "other" })
    assert.same({ "default", "other" }, idle(m))
    peft.activate(m, {})
    assert.same({}, idle(m))
  end)
end)

describe("merging", function()
  it("writes into no tensor of the base, nor into the file whose pages those are", function()
    local folder, remove = run.folder()
    assert(os.execute("cp -r tests/golden/dinov2_mlp/. " .. folder) == 0)
    local before = require("weft.files").read(folder .. "/model.safetensors")
    local base = {}
    local m = dinov2.from_pretrained(folder)
    for name, t in m:named_parameters() do base[name] = { t, t:detach():clone() } end
    peft.lora(m, { rank = 2, init = "random", dora = true })
    peft.merge(m)
    peft.unmerge(m)
    peft.merge_and_unload(m)
    local moved = 0
    for name, t in m:named_parameters() do
      assert.is_true(near.same(base[name][1], base[name][2]), name)
      moved = moved + (near.same(t, base[name][2]) and 0 or 1)
    end
    assert.equal(6, moved)
    assert.equal(before, (require("weft.files").read(folder .. "/model.safetensors")))
    remove()
  end)
end)

describe("merging in half precision", function()
  for _, dtype in ipairs { "bfloat16", "float16" } do
    it("is computed in float32 and rounded once: " .. dtype, function()
      for _, o in ipairs { {}, { lora_bias = true }, { dora = true } } do
        local m = peft.lora(Net():initialize(2), { rank = 2, targets = { "query" }, init = "random", lora_bias = o.lora_bias or false,
          dora = o.dora or false })
        m:freeze():to(dtype)
        local wide = peft.lora(Net(), { rank = 2, targets = { "query" }, lora_bias = o.lora_bias or false, dora = o.dora or false })
        local from = {}
        for name, t in m:named_parameters() do from[name] = t:to "float32" end
        weft.no_grad(function()
          for name, t in wide:named_parameters() do t:copy_(from[name]) end
        end)
        peft.merge(wide)
        peft.merge(m)
        for _, field in ipairs { "weight", "bias" } do
          local t = m.query.base_layer[field]
          assert.equal(dtype, t.dtype)
          assert.is_true(near.same(t, wide.query.base_layer[field]:to(dtype)), field)
        end
      end
    end)
  end
end)

describe("an adapter of a model that resizes positions by another rule", function()
  it("is refused, unless forced, and says how to agree", function()
    local folder, remove = run.folder()
    local m = dinov2.new { size = "tiny", pos_interp = "offset" }
    peft.lora(m, { rank = 2, init = "random" })
    peft.save(m, folder .. "/adapter")
    local function base(rule)
      local other = dinov2.new { size = "tiny", pos_interp = rule }
      other:load(peft.disable(m, function() return require("weft.peft.merge").merged_state(m) end))
      return other
    end
    assert.matches('was trained with positions resized by the rule offset, and this model resizes them by size; '
      .. 'from_pretrained(..., { pos_interp = "offset" })', message(peft.load, base "size", folder .. "/adapter"), 1, true)
    peft.load(base "size", folder .. "/adapter", { force = true })
    peft.load(base "offset", folder .. "/adapter")
    remove()
  end)
end)
