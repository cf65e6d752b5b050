-- optimizer_spec.lua: AdamW and SGD against formulas and a recorded run; groups, state and errors.
local weft = require "weft"
local near = require "tests.support.near"
local json = require "weft.io.json"
local safetensors = require "weft.io.safetensors"
local optim, nn = weft.optim, weft.nn

local function leaf(values, dtype)
  return weft.tensor(values, { dtype = dtype or "float64" }):requires_grad_()
end
local function message(fn, ...)
  local ok, text = pcall(fn, ...)
  assert.is_false(ok)
  return text
end

describe("AdamW", function()
  it("follows a run recorded elsewhere: three groups, warm-up, cosine, clipping", function()
    local g, metadata = assert(safetensors.load "tests/golden/optim.safetensors")
    local lrs, norms = json.decode(metadata.lrs), json.decode(metadata.norms)
    local p = {}
    for i = 1, 3 do p[i] = g["init." .. i - 1]:clone():requires_grad_() end
    local o = optim.AdamW({
      { params = { p[1] }, weight_decay = 0.05 }, { params = { p[2] } }, { params = { p[3] }, weight_decay = 0.02, lr = 5e-3 },
    }, { lr = 1e-2, betas = { 0.9, 0.98 }, eps = 1e-8, schedule = optim.schedule.cosine { steps = 24, warmup = 5, floor = 0.1 } })
    for s = 0, 23 do
      for i = 1, 3 do p[i].grad = g[("step%d.grad.%d"):format(s, i - 1)]:clone() end
      local norm = optim.clip_grad_norm(o, 1.0):item()
      assert.is_true(math.abs(norm - norms[s + 1]) <= 1e-6 * norms[s + 1])
      for i, lr in ipairs(o:lrs()) do assert.is_true(math.abs(lr - lrs[s + 1][i]) < 1e-15) end
      o:step()
      for i = 1, 3 do
        near.near(p[i], g[("step%d.param.%d"):format(s, i - 1)], 5e-7, ("step %d, parameter %d"):format(s, i))
      end
    end
  end)

  it("moves by lr in its first step, and shrinks by weight decay alone where the gradient is 0", function()
    local p = leaf { 1, 2, 3 }
    local o = optim.AdamW({ p }, { lr = 0.1, weight_decay = 0.5 })
    p.grad = weft.tensor({ 4, -4, 0 }, { dtype = "float64" })
    o:step()
    near.near(p, weft.tensor({ 0.95 - 0.1, 1.9 + 0.1, 2.85 }, { dtype = "float64" }), 1e-8)
  end)

  it("counts steps for each parameter: one that joins later begins at 1", function()
    local a, b = leaf { 1 }, leaf { 1 }
    local o = optim.AdamW({ { "a", a }, { "b", b } }, { lr = 0.1 })
    local one = weft.ones { 1, dtype = "float64" }
    for _ = 1, 3 do
      a.grad = one
      o:step()
    end
    assert.equal(1, b:item())
    b.grad = one * 7
    a.grad = one
    o:step()
    -- a first step has size lr whatever the gradient is
    assert.is_true(math.abs(b:item() - 0.9) < 1e-7)
    assert.same({ a = 4, b = 1 }, o:state().values.counts)
  end)

  it("does not touch a parameter that is frozen, nor one without a gradient", function()
    local a, b = leaf { 1 }, leaf { 1 }
    local o = optim.AdamW({ a, b }, { lr = 0.1, weight_decay = 0.5 })
    a.grad, b.grad = weft.ones { 1, dtype = "float64" }, weft.ones { 1, dtype = "float64" }
    b:requires_grad_(false)
    o:step()
    assert.equal(1, b:item())
    assert.is_true(a:item() < 1)
  end)

  it("moves float32 and float64 of one group", function()
    local a, b = leaf({ 1 }, "float32"), leaf({ 1 }, "float64")
    local o = optim.AdamW({ a, b }, { lr = 0.1 })
    a.grad, b.grad = weft.ones { 1 }, weft.ones { 1, dtype = "float64" }
    o:step()
    assert.is_true(math.abs(a:item() - 0.9) < 1e-6 and math.abs(b:item() - 0.9) < 1e-6)
  end)

  it("takes learning rates from the caller for one step", function()
    local p = leaf { 0 }
    local o = optim.AdamW({ p }, { lr = 0.1 })
    p.grad = weft.ones { 1, dtype = "float64" }
    o:step { 0.25 }
    assert.is_true(math.abs(p:item() + 0.25) < 1e-7)
    assert.matches("2 learning rates for 1 groups", message(o.step, o, { 1, 2 }))
  end)

  it("allocates nothing from the system and leaves no handle once it runs", function()
    local m = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))
    local o = optim.AdamW(m, { lr = 1e-3 })
    local x = weft.randn { 8, 32 }
    local function step()
      weft.scope(function()
        m(x):sum():backward()
        optim.clip_grad_norm(o, 1)
        o:step()
        o:zero_grad()
      end)
    end
    for _ = 1, 3 do step() end
    local state = require("weft.core").state
    local calls, handles = weft.memory().system_calls, state.handles
    for _ = 1, 5 do step() end
    assert.equal(calls, weft.memory().system_calls)
    assert.equal(handles, state.handles)
  end)
end)

describe("an optimizer", function()
  it("refuses to begin with nothing to train", function()
    local m = nn.Linear(2, 2):freeze()
    assert.matches("there is nothing to train: all 2 parameters are frozen", message(optim.AdamW, m))
    assert.matches("nothing to train", message(optim.SGD, {}))
    assert.matches("AdamW: lora: there is nothing to train", message(optim.AdamW, { { params = m, name = "lora" } }))
  end)

  it("refuses to step without a gradient", function()
    assert.matches("call backward%(%) first", message(function() optim.AdamW(nn.Linear(2, 2)):step() end))
  end)

  it("leaves frozen parameters of a module out, and counts tied ones once", function()
    local m = nn.ModuleList { nn.Embedding(5, 4), nn.Linear(4, 5) }
    m[2].weight = m[1].weight
    assert.equal(2, #optim.AdamW(m):parameters())
    m[2].bias:requires_grad_(false)
    assert.equal(1, #optim.AdamW(m):parameters())
  end)

  it("refuses a parameter in two groups, and two of one name", function()
    local m = nn.Linear(2, 2)
    assert.matches("b: bias is already in a", message(optim.AdamW, {
      { name = "a", params = m }, { name = "b", params = { { "bias", m.bias } } } }))
    assert.matches("two tensors are called x", message(optim.AdamW, { { "x", m.weight }, { "x", m.bias } }))
    assert.matches("two groups of this name", message(optim.AdamW, {
      { name = "a", params = { m.weight } }, { name = "a", params = { m.bias } } }))
  end)

  it("refuses unknown options with the nearest name", function()
    assert.matches("unknown option weight_deacy; did you mean weight_decay", message(optim.AdamW, nn.Linear(2, 2), { weight_deacy = 1 }))
    assert.matches("lr: a number from 0", message(optim.AdamW, nn.Linear(2, 2), { lr = -1 }))
  end)

  it("takes a group later and keeps the state of the others", function()
    local a, b = nn.Linear(2, 2), nn.Linear(2, 2)
    local o = optim.AdamW({ { name = "main", params = a } }, { lr = 0.1 })
    local x = weft.ones { 1, 2 }
    a(x):sum():backward()
    o:step()
    local m = o:state().tensors["m.weight"]:clone()
    o:add_group { name = "late", params = { ["late.weight"] = b.weight }, lr = 0.01 }
    assert.is_true(near.same(m, o:state().tensors["m.weight"]))
    assert.same({ 0.1, 0.01 }, o:lrs())
    b(a(x)):sum():backward()
    o:step()
    assert.equal(1, o:state().values.counts["late.weight"])
    assert.equal(2, o:state().values.counts.weight)
  end)

  it("keeps the state of what stays when it is extended", function()
    local a, b = leaf { 1 }, leaf { 1 }
    local o = optim.AdamW({ { "a", a } }, { lr = 0.1 })
    a.grad = weft.ones { 1, dtype = "float64" }
    o:step()
    local m = o:state().tensors["m.a"]
    o:extend { { name = "one", params = { { "a", a } }, lr = 0.2 }, { name = "two", params = { { "b", b } }, lr = 0.3 } }
    assert.equal(1, o.steps)
    assert.same({ a = 1, b = 0 }, o:state().values.counts)
    assert.is_true(o:state().tensors["m.a"] == m)
    assert.same({ 0.2, 0.3 }, o:lrs())
    b.grad = weft.ones { 1, dtype = "float64" }
    o:step()
    assert.same({ a = 2, b = 1 }, o:state().values.counts)
  end)

  it("loses its state in a rebuild and keeps its groups", function()
    local m = nn.Linear(2, 2)
    local o = optim.AdamW({ { name = "main", params = m, lr = 0.5 } }, { schedule = optim.schedule.warmup { steps = 4 } })
    m(weft.ones { 1, 2 }):sum():backward()
    o:step()
    o:rebuild()
    assert.equal(0, o.steps)
    assert.same({ 0.125 }, o:lrs())
    assert.is_nil(next(o:state().tensors))
    o:rebuild { { params = m.bias:requires_grad_() and { m.bias } } }
    assert.equal(1, #o:parameters())
  end)

  local function trained(kind, options, steps, resume)
    local p = leaf { 1, -2, 3 }
    local o = kind({ { "p", p } }, options)
    for s = 1, steps do
      if s == resume then
        -- through a file, into a new optimizer
        local saved = o:state()
        local path = os.tmpname() .. ".safetensors"
        assert(safetensors.save(path, saved.tensors))
        local q = p:detach():clone():requires_grad_()
        o = kind({ { "p", q } }, options)
        o:load_state { tensors = assert(safetensors.load(path)), values = json.decode(json.encode(saved.values)) }
        os.remove(path)
        p = q
      end
      p.grad = weft.tensor({ s, 1, -s }, { dtype = "float64" })
      o:step()
    end
    return p
  end

  it("resumes bit for bit from a file", function()
    local schedule = optim.schedule.cosine { steps = 10, warmup = 3 }
    for _, case in ipairs {
      { optim.AdamW, { lr = 0.1, weight_decay = 0.1, schedule = schedule } },
      { optim.SGD, { lr = 0.1, momentum = 0.9, nesterov = true, schedule = schedule } },
      { optim.SGD, { lr = 0.1 } },
    } do
      assert.is_true(near.same(trained(case[1], case[2], 8), trained(case[1], case[2], 8, 5)))
    end
  end)

  it("refuses a state that does not fit, and changes nothing", function()
    local a, b = nn.Linear(2, 2), nn.Linear(3, 2)
    local o, other = optim.AdamW(a), optim.AdamW(b)
    b(weft.ones { 1, 3 }):sum():backward()
    other:step()
    local text = message(o.load_state, o, other:state())
    assert.matches("m.weight is float32 [2,3], expected float32 [2,2]", text, 1, true)
    assert.is_nil(next(o:state().tensors))
    assert.matches("the state is of SGD", message(o.load_state, o, optim.SGD(a):state()))
    local state = other:state()
    state.tensors["v.weight"] = nil
    assert.matches("missing v.weight", message(other.load_state, other, state), 1, true)
    state.values.counts.extra = 1
    assert.matches("extra extra", message(other.load_state, other, state), 1, true)
  end)

  it("says what it holds", function()
    local text = tostring(optim.AdamW({ { name = "heads", params = nn.Linear(1000, 2), lr = 0.01 } }))
    assert.matches("heads: 2,002 parameters in 2 tensors, lr 0.01 (base 0.01), weight decay 0", text, 1, true)
  end)
end)

describe("SGD", function()
  it("moves against the gradient, with momentum as a running sum", function()
    local p, q, r = leaf { 1 }, leaf { 1 }, leaf { 1 }
    local plain = optim.SGD({ p }, { lr = 0.5, weight_decay = 0.1 })
    local heavy = optim.SGD({ q }, { lr = 0.5, momentum = 0.9 })
    local ahead = optim.SGD({ r }, { lr = 0.5, momentum = 0.9, nesterov = true })
    local g = weft.full { 1, value = 2, dtype = "float64" }
    for _ = 1, 2 do
      p.grad, q.grad, r.grad = g, g, g
      plain:step()
      heavy:step()
      ahead:step()
    end
    local first = 1 - 0.5 * 2.1
    assert.is_true(math.abs(p:item() - (first - 0.5 * (2 + 0.1 * first))) < 1e-12)
    assert.is_true(math.abs(q:item() - (1 - 0.5 * 2 - 0.5 * 3.8)) < 1e-12)
    assert.is_true(math.abs(r:item() - (1 - 0.5 * 3.8 - 0.5 * (2 + 0.9 * 3.8))) < 1e-12)
    assert.is_nil(next(plain:state().tensors))
  end)
end)

describe("clipping", function()
  it("scales all gradients by one factor when their norm is too large", function()
    local a, b = leaf { 0, 0 }, leaf({ 0 }, "float32")
    a.grad, b.grad = weft.tensor({ 3, 0 }, { dtype = "float64" }), weft.tensor { 4 }
    local norm = optim.clip_grad_norm({ a, b }, 1)
    assert.is_true(math.abs(norm:item() - 5) < 1e-6)
    near.near(a.grad, weft.tensor({ 0.6, 0 }, { dtype = "float64" }), 1e-6)
    near.near(b.grad, weft.tensor { 0.8 }, 1e-6)
  end)
  it("leaves small gradients as they are", function()
    local a = leaf { 0, 0 }
    a.grad = weft.tensor({ 0.3, 0.4 }, { dtype = "float64" })
    optim.clip_grad_norm({ a }, 1)
    assert.same({ 0.3, 0.4 }, a.grad:totable())
    assert.is_true(math.abs(optim.grad_norm { a }:item() - 0.5) < 1e-7)
  end)
  it("wants a gradient", function()
    assert.matches("call backward%(%) first", message(optim.clip_grad_norm, nn.Linear(2, 2), 1))
  end)
end)

describe("EMA", function()
  it("follows d e + (1 - d) p with a decay that warms up", function()
    local p = leaf { 1 }
    local e = optim.EMA({ p }, { decay = 0.15 })
    local expected = 1
    for t = 0, 4 do
      weft.no_grad(function() p:fill_(t + 2) end)
      local d = math.min(0.15, (1 + t) / (10 + t))
      assert.is_true(math.abs(e:decay_now() - d) < 1e-15)
      e:update()
      expected = d * expected + (1 - d) * (t + 2)
      assert.is_true(math.abs(e.entries[1].average:item() - expected) < 1e-12)
    end
  end)

  it("swaps the averages in for a function, and back when it fails", function()
    local m = nn.Linear(1, 1, { bias = false })
    local e = optim.EMA(m, { decay = 0.5, warmup = false })
    weft.no_grad(function() m.weight:fill_(10) end)
    e.entries[1].average:fill_(4)
    assert.equal(4, e:apply(function() return m.weight:item() end))
    assert.equal(10, m.weight:item())
    assert.has_error(function() e:apply(function() error "on purpose" end) end)
    assert.equal(10, m.weight:item())
    e:update()
    assert.equal(7, e.entries[1].average:item())
    e:swap()
    assert.matches("swap%(%) them out", message(e.update, e))
  end)

  it("takes in what is unfrozen later", function()
    local m = nn.Linear(2, 2)
    m.bias:requires_grad_(false)
    local e = optim.EMA(m)
    assert.equal(1, #e.entries)
    m.bias:requires_grad_(true)
    e:track(m)
    assert.equal(2, #e.entries)
    e:update()
    assert.matches("nothing trains", message(optim.EMA, nn.Linear(2, 2):freeze()))
  end)

  it("resumes from its state and refuses another's", function()
    local m = nn.Linear(2, 2)
    local a, b = optim.EMA(m), optim.EMA(m)
    weft.no_grad(function() m.weight:fill_(3) end)
    a:update()
    b:load_state(a:state())
    a:update()
    b:update()
    assert.is_true(near.same(a.by_name.weight.average, b.by_name.weight.average))
    assert.equal(2, b.updates)
    assert.matches("missing", message(b.load_state, b, { tensors = {}, values = { updates = 1 } }))
  end)
end)
