-- module_spec.lua: what every module can do: names, counts, state, freezing, hooks, conversion, printing.
local weft = require "weft"
local near = require "tests.support.near"
local nn = weft.nn

local function message(fn, ...)
  local ok, text = pcall(fn, ...)
  assert.is_false(ok)
  return text
end

local function names(m)
  local list = {}
  for name in m:named_parameters() do list[#list + 1] = name end
  return table.concat(list, " ")
end

local Block = nn.Module "Block"
function Block:init(n)
  self.norm = nn.LayerNorm(n)
  self.fc = nn.Linear(n, n)
  self.gate = weft.zeros { 1 }:requires_grad_()
end
function Block:forward(x) return x + self.gate * self.fc(self.norm(x)) end

describe("a module", function()
  it("names its parameters by the path of fields that leads to them", function()
    assert.equal("gate norm.weight norm.bias fc.weight fc.bias", names(Block(3)))
  end)

  it("numbers the children of a list from 0 in names and from 1 in Lua", function()
    local list = nn.ModuleList { Block(2), Block(2) }
    list:append(nn.Linear(2, 3, { bias = false }))
    assert.equal("0.gate 0.norm.weight 0.norm.bias 0.fc.weight 0.fc.bias 1.gate 1.norm.weight 1.norm.bias 1.fc.weight 1.fc.bias 2.weight",
      names(list))
    assert.equal(3, #list)
    assert.equal("Linear", list[3].type)
    assert.equal(list[1], list:get "0")
    local seen = 0
    for i, m in ipairs(list) do
      seen = seen + 1
      assert.equal(list[i], m)
    end
    assert.equal(3, seen)
  end)

  it("finds and replaces modules by path", function()
    local m = nn.Sequential(Block(2), Block(2))
    local replacement = nn.Linear(2, 2)
    m:set("1.fc", replacement)
    assert.equal(replacement, m[2].fc)
    m:set("0", replacement)
    assert.equal(replacement, m[1])
    assert.is_nil(m:get "2")
    assert.is_nil(m:get "0.nothing")
    assert.matches("there is no module 7.fc", message(m.set, m, "7.fc", replacement))
    assert.matches("a module is expected, got a number", message(m.set, m, "0", 3))
  end)

  it("refuses what is no module in a list", function()
    assert.matches("a module is expected, got a number", message(nn.ModuleList, { 3 }))
    local list = nn.ModuleList()
    assert.matches("the next place is 1", message(function() list[3] = nn.ReLU() end))
  end)

  it("counts tied parameters once", function()
    local m = nn.ModuleList { nn.Embedding(5, 4), nn.Linear(4, 5, { bias = false }) }
    m[2].weight = m[1].weight
    assert.equal(20, m:count())
    assert.equal("0.weight", names(m))
    weft.no_grad(function() m[1].weight:fill_(7) end)
    assert.equal(7, m[2].weight[1][1]:item())
  end)

  it("keeps tied parameters tied through a conversion", function()
    local m = nn.ModuleList { nn.Embedding(5, 4), nn.Linear(4, 5, { bias = false }) }
    m[2].weight = m[1].weight
    m:to "float64"
    assert.equal(20, m:count())
    assert.equal("float64", m[2].weight.dtype)
    assert.is_true(m[1].weight == m[2].weight)
  end)

  it("freezes and unfreezes, and counts what trains", function()
    local m = nn.Sequential(Block(3), nn.Linear(3, 2))
    assert.equal(27, m:count())
    assert.equal(27, m:count(true))
    m[1]:freeze()
    assert.equal(8, m:count(true))
    assert.equal(27, m:count())
    m:freeze()
    assert.equal(0, m:count(true))
    m[1].norm:unfreeze()
    assert.equal(6, m:count(true))
  end)

  it("gives a frozen parameter no gradient", function()
    local m = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    m[1]:freeze()
    m(weft.randn { 4, 3 }):sum():backward()
    assert.is_nil(m[1].weight.grad)
    assert.is_not_nil(m[2].weight.grad)
    m:zero_grad()
    assert.is_nil(m[2].weight.grad)
  end)

  it("switches training on and off for all inside", function()
    local m = nn.Sequential(nn.Dropout(0.5), nn.ModuleList { nn.Dropout(0.5) })
    m:eval()
    assert.is_false(m[2][1].training)
    m:train()
    assert.is_true(m[2][1].training)
  end)

  it("calls forward hooks with what forward returned, until they are taken off", function()
    local m, seen = nn.Linear(2, 3), {}
    local remove = m:register_forward_hook(function(module, y) seen[#seen + 1] = { module, y } end)
    local y = m(weft.ones { 1, 2 })
    assert.equal(1, #seen)
    assert.equal(m, seen[1][1])
    assert.is_true(seen[1][2] == y)
    remove()
    m(weft.ones { 1, 2 })
    assert.equal(1, #seen)
  end)

  it("keeps its parameters beyond the scope that made them", function()
    local m = nn.Linear(2, 2)
    weft.scope(function() m.extra = weft.ones { 3 } end)
    assert.equal(3, m.extra:sum():item())
  end)

  it("converts to float64 and computes in it", function()
    local m = Block(3):to "float64"
    m.gate:requires_grad_(false)
    m:to "float64"
    assert.is_false(m.gate.requires_grad)
    assert.is_true(m.fc.weight.requires_grad)
    assert.equal("float64", m(weft.randn { 2, 3, dtype = "float64" }).dtype)
  end)

  it("keeps the handles of parameters that a conversion leaves as they are", function()
    local m = nn.Linear(2, 2)
    local before = m.weight
    m:to "float32"
    assert.is_true(m.weight == before)
  end)

  it("moves a buffer of integers by device and never by dtype", function()
    local m = nn.Linear(2, 2)
    m:register_buffer("ids", weft.arange(0, 3, { dtype = "int64" }))
    m:to "float64"
    assert.equal("int64", m.ids.dtype)
    m:to "meta"
    assert.equal("meta", m.ids.device)
    assert.equal("meta", m.weight.device)
  end)
end)

describe("state", function()
  it("holds parameters and buffers by name", function()
    local m = Block(2)
    m.norm:register_buffer("steps", weft.zeros { 1 })
    local list = {}
    for name in pairs(m:state_dict()) do list[#list + 1] = name end
    table.sort(list)
    assert.equal("fc.bias fc.weight gate norm.bias norm.steps norm.weight", table.concat(list, " "))
  end)

  it("loads by name and computes the same", function()
    local a, b = Block(3), Block(3)
    weft.no_grad(function() a.gate:fill_(0.5) end)
    b:load_state_dict(a:state_dict())
    local x = weft.randn { 4, 3 }
    assert.is_true(near.same(a(x), b(x)))
    assert.is_false(b.fc.weight == a.fc.weight)
  end)

  it("refuses missing, extra and misshapen tensors in one error, and changes nothing", function()
    local a, b = Block(3), Block(3)
    local before = b.norm.weight:clone()
    local state = a:state_dict()
    state["norm.weight"] = weft.full { 3, value = 9 }
    state.gate = nil
    state["fc.weigth"] = weft.ones { 3, 3 }
    state["fc.bias"] = weft.ones { 4 }
    local text = message(b.load_state_dict, b, state)
    assert.matches("3 tensors do not fit", text)
    assert.matches("missing gate", text, 1, true)
    assert.matches("extra fc.weigth", text, 1, true)
    assert.matches("fc.bias is [4], expected [3]", text, 1, true)
    assert.is_true(near.same(before, b.norm.weight))
  end)

  it("takes a part of the state when not strict", function()
    local m = Block(2)
    m:load_state_dict({ gate = weft.ones { 1 } }, { strict = false })
    assert.equal(1, m.gate:item())
    assert.matches("unknown option stirct", message(m.load_state_dict, m, {}, { stirct = false }))
  end)
end)

describe("initialize", function()
  it("draws by seed and name alone", function()
    local a = nn.ModuleList { nn.Linear(4, 4), nn.Linear(4, 4) }
    local b = nn.ModuleList { nn.Linear(4, 4) }
    a:initialize(3)
    b:initialize(3)
    assert.is_true(near.same(a[1].weight, b[1].weight))
    assert.is_false(near.same(a[1].weight, a[2].weight))
    local w = a[1].weight:clone()
    a:initialize(4)
    assert.is_false(near.same(w, a[1].weight))
  end)

  it("leaves what a file gave", function()
    local m = nn.Linear(2, 2)
    m:load_state_dict({ weight = weft.full { 2, 2, value = 5 } }, { strict = false })
    m:initialize(1)
    assert.equal(20, m.weight:sum():item())
  end)

  it("stays inside the bound of its fan-in", function()
    local w = nn.Linear(16, 64).weight
    assert.is_true(w:abs():max():item() <= 0.25)
    assert.is_true(w:abs():max():item() > 0.24)
  end)
end)

describe("modules without memory", function()
  it("have shapes and counts and take no bytes", function()
    local before = weft.memory().live
    local m = nn.on_meta(function() return nn.Sequential(nn.Linear(4096, 4096), nn.Embedding(50000, 768)) end)
    assert.equal(4096 * 4096 + 4096 + 50000 * 768, m:count())
    assert.is_true(weft.memory().live - before < 65536)
    assert.equal("meta", m[1].weight.device)
    m:initialize(1)
  end)

  it("end with the function, also when it fails", function()
    assert.matches("on purpose", message(nn.on_meta, function() error "on purpose" end))
    assert.equal("cpu", nn.Linear(1, 1).weight.device)
  end)

  it("can be made unfilled, and filled by initialize", function()
    local a = nn.unfilled(function() return nn.Linear(8, 8) end)
    local b = nn.Linear(8, 8)
    assert.is_true(near.same(a:initialize(2).weight, b:initialize(2).weight))
  end)
end)

describe("printing", function()
  it("shows a tree with counts, what is frozen, and equal children once", function()
    local m = nn.Sequential(nn.Linear(1000, 3), nn.ModuleList { nn.RMSNorm(4), nn.RMSNorm(4), nn.RMSNorm(5) })
    m[1]:freeze()
    assert.equal(table.concat({
      "Sequential  3,016  13 trainable",
      "  0: Linear(1000 -> 3)  3,003  frozen",
      "  1: ModuleList(3)  13",
      "    0..1: RMSNorm(4, eps 1e-06)  4",
      "    2: RMSNorm(5, eps 1e-06)  5",
    }, "\n"), tostring(m))
  end)

  it("names the path of a module in its errors once paths are known", function()
    local m = nn.Sequential(nn.ReLU(), Block(3)):assign_paths()
    assert.matches("1.norm: LayerNorm(3, eps 1e-05): x [2,4]: a last dim of 3 is expected",
      message(m, weft.ones { 2, 4 }), 1, true)
    assert.matches("1.fc: Linear(3 -> 3): x: a tensor is expected, got the string", message(m[2].fc, "x"), 1, true)
  end)

  it("suggests layers by name", function()
    assert.matches("did you mean Linear", message(function() return nn.Linaer end))
  end)
end)
