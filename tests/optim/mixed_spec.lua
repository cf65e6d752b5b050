-- mixed_spec.lua: bfloat16 parameters on a GPU, with float32 masters: that small steps add up, that
-- state is resumed, that a bfloat16 model trains as its float32 twin does.
local weft = require "weft"
local gpu = require "tests.support.gpu"
local near = require "tests.support.near"
local safetensors = require "weft.io.safetensors"
local json = require "weft.io.json"
local optim, nn = weft.optim, weft.nn

local it = gpu.guard(it, pending)
local function half(values) return weft.tensor(values, { dtype = "float32" }):to("bfloat16"):to(gpu.device) end
local function leaf(values) return half(values):requires_grad_() end
local function number(t, i) return near.numbers(t)[i or 1] end

describe("AdamW of bfloat16 parameters", function()
  it("adds up steps that are too small for bfloat16 to see", function()
    local p = leaf { 1 }
    local o = optim.AdamW({ { "w", p } }, { lr = 1e-4 })
    for _ = 1, 100 do
      p.grad = half { 1 }
      o:step()
    end
    -- 1 - 1e-4 is 1 in bfloat16; a hundred of them are 0.99
    assert.is_true(math.abs(number(o:state().tensors["master.w"]) - 0.99) < 1e-5)
    assert.equal(number(half { 0.99 }), number(p))
  end)

  it("names m, v and master in its state, all float32, and says so", function()
    local p = leaf { 1, 2 }
    local o = optim.AdamW { { "w", p } }
    p.grad = half { 1, 1 }
    o:step()
    local tensors = o:state().tensors
    for _, slot in ipairs { "m", "v", "master" } do assert.equal("float32", tensors[slot .. ".w"].dtype) end
    assert.matches("float32 masters of 1 in bfloat16", o:describe(), 1, true)
  end)

  local function trained(steps, broken)
    local p = leaf { 1, -2, 3 }
    local function new(q) return optim.AdamW({ { "w", q } }, { lr = 3e-3, weight_decay = 0.1 }) end
    local o = new(p)
    for s = 1, steps do
      if s == broken then
        local saved, path = o:state(), os.tmpname() .. ".safetensors"
        assert(safetensors.save(path, saved.tensors))
        p = p:detach():clone():requires_grad_()
        o = new(p)
        o:load_state { tensors = assert(safetensors.load(path)), values = json.decode(json.encode(saved.values)) }
        os.remove(path)
      end
      p.grad = half { s, 1, -s }
      o:step()
    end
    return p, o:state().tensors["master.w"]
  end

  it("resumes bit for bit from a file", function()
    local p, master = trained(9)
    local q, again = trained(9, 5)
    assert.is_true(near.same(p, q))
    assert.is_true(near.same(master, again))
  end)

  it("goes through a checkpoint whose checksums are of what lies on the GPU", function()
    local checkpoint = require "weft.train.checkpoint"
    local dir = os.tmpname()
    os.remove(dir)
    local _, master = trained(3)
    local other = master + 1
    assert.are_not.equal(checkpoint.checksum { w = master }, checkpoint.checksum { w = other })
    assert.equal(checkpoint.checksum { w = master:to "cpu" }, checkpoint.checksum { w = master })
    local at = assert(checkpoint.save(dir, 3, { optimizer = { ["master.w"] = master } }, { step = 3 }))
    local parts = assert(checkpoint.read(at))
    assert.is_true(near.same(parts.optimizer["master.w"], master))
    require("weft.files").remove_dir(at)
    require("weft.files").remove_dir(dir)
  end)

  it("refuses a state without masters", function()
    local p = leaf { 1 }
    local o = optim.AdamW { { "w", p } }
    p.grad = half { 1 }
    o:step()
    local state = o:state()
    state.tensors["master.w"] = nil
    local ok, text = pcall(o.load_state, o, state)
    assert.is_false(ok)
    assert.matches("missing master.w", text, 1, true)
  end)

  it("follows a weight that someone else writes, and keeps the others' masters", function()
    local p = leaf { 1, 1 }
    local o = optim.AdamW({ { "w", p } }, { lr = 1e-4 })
    local function step()
      p.grad = half { 1, 1 }
      o:step()
    end
    step()
    weft.no_grad(function() p:narrow(1, 1, 1):fill_(5) end)
    step()
    assert.equal(5, number(p, 1))
    local master = near.numbers(o:state().tensors["master.w"])
    assert.is_true(math.abs(master[1] - (5 - 1e-4)) < 1e-6 and math.abs(master[2] - (1 - 2e-4)) < 1e-6)
  end)

  it("keeps masters when it is extended", function()
    local p, q = leaf { 1 }, leaf { 2 }
    local o = optim.AdamW({ { "p", p } }, { lr = 1e-4 })
    p.grad = half { 1 }
    o:step()
    o:extend { { "p", p }, { "q", q } }
    assert.is_true(math.abs(number(o:state().tensors["master.p"]) - (1 - 1e-4)) < 1e-7)
  end)

  it("is what SGD points to, which keeps none", function()
    local ok, text = pcall(optim.SGD, { { "w", leaf { 1 } } })
    assert.is_false(ok)
    assert.matches("w is bfloat16; float32 or float64 is expected (AdamW keeps float32 masters of bfloat16)", text, 1, true)
  end)
end)

describe("a moving average of bfloat16 parameters", function()
  it("is kept in float32, through a swap and back", function()
    local p = leaf { 1 }
    local e = optim.EMA({ { "w", p } }, { decay = 0.5, warmup = false })
    weft.no_grad(function() p:fill_(1.0078125) end)
    e:update()
    assert.equal(1.00390625, number(e:state().tensors.w))
    e:swap()
    assert.equal(number(half { 1.00390625 }), number(p))
    e:swap()
    assert.equal(1.0078125, number(p))
    assert.equal(1.00390625, number(e:state().tensors.w))
  end)
end)

describe("a bfloat16 model", function()
  local function randn(name, shape)
    shape.rng = weft.random.stream("mixed " .. name, 3)
    return weft.randn(shape)
  end

  -- Losses of a small network that learns a smooth function.
  local function run(dtype, steps)
    weft.manual_seed(11)
    local m = nn.Sequential(nn.Linear(6, 32), nn.GELU(), nn.Linear(32, 2)):to(gpu.device):to(dtype)
    local o = optim.AdamW(m, { lr = 1e-2, weight_decay = 0.01 })
    local x = randn("x", { 64, 6 })
    local y = weft.cat({ x:narrow(2, 1, 1) * x:narrow(2, 2, 1), (x:narrow(2, 3, 1) * 2):sin() }, 2)
    x, y = x:to(gpu.device):to(dtype), y:to(gpu.device):to(dtype)
    local losses = {}
    for s = 1, steps do
      weft.scope(function()
        local d = m(x) - y
        local loss = (d * d):to("float32"):mean()
        loss:backward()
        optim.clip_grad_norm(o, 1.0)
        o:step()
        o:zero_grad()
        losses[s] = loss:item()
      end)
    end
    return losses, m, o
  end

  it("trains as its float32 twin does, within bfloat16's error", function()
    local want = run("float32", 60)
    local got, m, o = run("bfloat16", 60)
    assert.is_true(want[60] < 0.3 * want[1], "the twin learns")
    for s = 1, 60 do
      assert.is_true(math.abs(got[s] - want[s]) <= 0.05 * want[1], ("step %d: %g, float32 %g"):format(s, got[s], want[s]))
    end
    for name, p in m:named_parameters() do
      assert.equal("bfloat16", p.dtype)
      assert.is_true(near.same(o:state().tensors["master." .. name]:to "bfloat16", p:detach()), name)
    end
  end)
end)
