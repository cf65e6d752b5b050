-- layers_spec.lua: each layer against its formula.
local weft = require "weft"
local near = require "tests.support.near"
local nn = weft.nn

local function T(v) return weft.tensor(v, { dtype = "float64" }) end
local function message(fn, ...)
  local ok, text = pcall(fn, ...)
  assert.is_false(ok)
  return text
end
local function set(t, v) weft.no_grad(function() t:copy_(T(v)) end) end

describe("Linear", function()
  it("is x W^T + b", function()
    local m = nn.Linear(3, 2):to "float64"
    set(m.weight, { { 1, 2, 3 }, { 4, 5, 6 } })
    set(m.bias, { 10, 20 })
    near.near(m(T { { 1, 0, -1 }, { 2, 2, 2 } }), T { { 8, 18 }, { 22, 50 } })
  end)
  it("may go without a bias", function()
    assert.is_nil(nn.Linear(3, 2, { bias = false }).bias)
    assert.matches("unknown option bais; did you mean bias", message(nn.Linear, 3, 2, { bais = false }))
  end)
end)

describe("Embedding", function()
  it("takes rows by id, from 0", function()
    local m = nn.Embedding(3, 2):to "float64"
    set(m.weight, { { 1, 2 }, { 3, 4 }, { 5, 6 } })
    near.near(m(weft.tensor({ { 2, 0 } }, { dtype = "int64" })), T { { { 5, 6 }, { 1, 2 } } })
  end)
  it("begins standard normal", function()
    local w = nn.Embedding(200, 50):initialize(1).weight
    assert.is_true(math.abs(w:mean():item()) < 0.05)
    assert.is_true(math.abs(w:var():item() - 1) < 0.05)
  end)
  it("refuses an id outside the table", function()
    assert.matches("3", message(nn.Embedding(3, 2), weft.tensor({ 3 }, { dtype = "int64" })))
  end)
end)

describe("LayerNorm", function()
  it("takes the mean out, divides by the deviation, scales and shifts", function()
    local m = nn.LayerNorm(4, { eps = 0.5 }):to "float64"
    set(m.weight, { 1, 2, 3, 4 })
    set(m.bias, { 0, 0, 1, 1 })
    local s = 1 / math.sqrt(1.25 + 0.5)
    near.near(m(T { 1, 2, 3, 4 }), T { -1.5 * s, -s, 1 + 1.5 * s, 1 + 6 * s }, 1e-12)
  end)
  it("may go without weight and bias", function()
    local m = nn.LayerNorm(2, { weight = false, bias = false, eps = 0 })
    assert.equal(0, m:count())
    near.near(m(weft.tensor { 3, 5 }), weft.tensor { -1, 1 })
  end)
end)

describe("RMSNorm", function()
  it("divides by the root of the mean square", function()
    local m = nn.RMSNorm(2, { eps = 0 }):to "float64"
    set(m.weight, { 1, 2 })
    near.near(m(T { 3, 4 }), T { 3 / math.sqrt(12.5), 8 / math.sqrt(12.5) }, 1e-12)
  end)
end)

describe("activations", function()
  it("follow their formulas", function()
    local x = T { -2, -0.5, 0, 1, 3 }
    local function map(f)
      local out = {}
      for i, v in ipairs { -2, -0.5, 0, 1, 3 } do out[i] = f(v) end
      return T(out)
    end
    near.near(nn.ReLU()(x), map(function(v) return math.max(v, 0) end))
    near.near(nn.SiLU()(x), map(function(v) return v / (1 + math.exp(-v)) end), 1e-12)
    near.near(nn.Tanh()(x), map(math.tanh), 1e-12)
    near.near(nn.GELU { approximate = "tanh" }(x), map(function(v)
      return 0.5 * v * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v ^ 3)))
    end), 1e-12)
    -- x Phi(x) with Phi(1) and Phi(3) of the tables
    near.near(nn.GELU()(T { 1, 3, 0 }), T { 0.841344746068543, 2.995950305905110, 0 }, 1e-12)
  end)
  it("tell the two forms of GELU apart", function()
    assert.is_true(near.difference(nn.GELU()(T { 1.5 }), nn.GELU { approximate = "tanh" }(T { 1.5 })) > 1e-5)
    assert.matches("approximate", message(nn.GELU, { approximate = "fast" }))
  end)
end)

describe("Dropout", function()
  it("is the identity in evaluation and at p 0", function()
    local x = weft.randn { 8 }
    assert.is_true(nn.Dropout(0.5):eval()(x) == x)
    assert.is_true(nn.Dropout(0)(x) == x)
  end)
  it("drops a share of p and scales the rest", function()
    local y = nn.Dropout(0.25)(weft.ones { 10000 })
    local dropped = y:eq(0):to("float32"):mean():item()
    assert.is_true(math.abs(dropped - 0.25) < 0.02)
    assert.is_true(math.abs(y:max():item() - 1 / 0.75) < 1e-6)
  end)
  it("draws by its own path: another layer shifts nothing", function()
    local x = weft.ones { 64 }
    local function first_of(m)
      m:assign_paths()
      weft.manual_seed(5)
      weft.random.set_step(1)
      local y
      for i = 1, #m do y = m[i](x) end
      return y
    end
    local Late = nn.Module "Late"
    function Late:init() self.other = nn.Dropout(0.5) end
    function Late:forward(t)
      self.other(t)
      return t
    end
    local a = nn.ModuleList { nn.ReLU(), nn.Dropout(0.5) }
    local b = nn.ModuleList { Late(), nn.Dropout(0.5) }
    assert.is_true(near.same(first_of(a), first_of(b)))
  end)
  it("draws another mask at each call and step", function()
    local m = nn.Dropout(0.5)
    local x = weft.ones { 64 }
    weft.random.set_step(1)
    local first, second = m(x), m(x)
    assert.is_false(near.same(first, second))
    weft.random.set_step(1)
    assert.is_true(near.same(first, m(x)))
    weft.random.set_step(2)
    assert.is_false(near.same(first, m(x)))
  end)
  it("refuses p outside [0, 1)", function()
    assert.matches("p must lie in", message(nn.Dropout, 1))
    assert.matches("a number is expected", message(nn.Dropout, "half"))
  end)
end)

describe("DropPath", function()
  it("drops whole samples and scales the others", function()
    local y = nn.DropPath(0.5)(weft.ones { 400, 3, 2 })
    local sums = near.numbers(y:sum({ 2, 3 }))
    local dropped = 0
    for _, v in ipairs(sums) do
      assert.is_true(v == 0 or v == 12)
      if v == 0 then dropped = dropped + 1 end
    end
    assert.is_true(dropped > 150 and dropped < 250)
  end)
  it("passes everything in evaluation", function()
    local x = weft.ones { 2, 2 }
    assert.is_true(nn.DropPath(0.9):eval()(x) == x)
  end)
end)

describe("Sequential", function()
  it("feeds each module with the one before, named from 0", function()
    local m = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    local x = weft.randn { 4, 2 }
    near.near(m(x), m[3](m[2](m[1](x))))
    assert.is_not_nil(m:state_dict()["2.weight"])
    assert.equal(3, #nn.Sequential { nn.ReLU(), nn.ReLU(), nn.ReLU() })
  end)
end)

describe("Conv2d", function()
  it("slides its kernel", function()
    local m = nn.Conv2d(1, 1, { kernel = 2 }):to "float64"
    set(m.weight, { { { { 1, 2 }, { 3, 4 } } } })
    set(m.bias, { 100 })
    near.near(m(T { { { { 1, 2, 3 }, { 4, 5, 6 }, { 7, 8, 9 } } } }), T { { { { 137, 147 }, { 167, 177 } } } })
  end)
  it("cuts patches with stride equal to kernel", function()
    local m = nn.Conv2d(3, 5, { kernel = 14, stride = 14 })
    assert.same({ 2, 5, 2, 3 }, m(weft.zeros { 2, 3, 28, 42 }).shape)
    assert.same({ 5, 3, 14, 14 }, m.weight.shape)
  end)
  it("checks its input and options", function()
    assert.matches("[B, 3, H, W] is expected", message(nn.Conv2d(3, 5, { kernel = 2 }), weft.zeros { 2, 4, 8, 8 }), 1, true)
    assert.matches("kernel is missing", message(nn.Conv2d, 3, 5, {}))
    assert.matches("groups 2 must divide", message(nn.Conv2d, 3, 4, { kernel = 1, groups = 2 }))
  end)
end)

describe("MultiHeadAttention", function()
  -- softmax(q k^T / sqrt(d)) v by hand, one head at a time
  local function by_hand(m, query, key, mask)
    local q, k, v = m.q_proj(query), m.k_proj(key), m.v_proj(key)
    local parts = {}
    for h = 1, m.heads do
      local from = (h - 1) * m.head_dim + 1
      local function head(t) return t:narrow(3, from, m.head_dim) end
      local s = weft.matmul(head(q), head(k):t()) / math.sqrt(m.head_dim)
      if mask then s = s:masked_fill(mask:logical_not(), -1e300) end
      parts[h] = weft.matmul(s:softmax(-1), head(v))
    end
    return m.o_proj(weft.cat(parts, 3))
  end

  it("is softmax(q k^T / sqrt(d)) v in each head", function()
    local m = nn.MultiHeadAttention(8, 2):to "float64"
    local x = weft.randn { 2, 5, 8, dtype = "float64" }
    near.near(m(x), by_hand(m, x, x), 1e-10)
  end)

  it("looks across at keys of another width", function()
    local m = nn.MultiHeadAttention(8, 4, { key_width = 6 }):to "float64"
    local x, y = weft.randn { 2, 3, 8, dtype = "float64" }, weft.randn { 2, 5, 6, dtype = "float64" }
    local mask = weft.tensor({ { 1, 1, 0, 1, 0 }, { 1, 0, 0, 0, 0 } }):gt(0.5)
    near.near(m(x, y, nil, { mask = mask }), by_hand(m, x, y, mask:unsqueeze(2)), 1e-10)
  end)

  it("with causal sees nothing later", function()
    local m = nn.MultiHeadAttention(4, 2)
    local x = weft.randn { 1, 4, 4 }
    local before = m(x, nil, nil, { causal = true })
    local changed = x:clone()
    changed[1][4] = weft.full { 4, value = 9 }
    local after = m(changed, nil, nil, { causal = true })
    assert.is_true(near.same(before:narrow(2, 1, 3), after:narrow(2, 1, 3)))
    assert.is_false(near.same(before, after))
  end)

  it("has gradients that agree with differences", function()
    local m = nn.MultiHeadAttention(4, 2, { key_width = 3 }):to "float64"
    local x = weft.randn { 2, 3, 4, dtype = "float64", requires_grad = true }
    local y = weft.randn { 2, 2, 3, dtype = "float64", requires_grad = true }
    assert(weft.gradcheck(function(a, b) return m(a, b) end, { x, y }))
  end)

  it("drops weights in training only", function()
    local m = nn.MultiHeadAttention(4, 2, { dropout = 0.5 })
    local x = weft.randn { 1, 6, 4 }
    assert.is_false(near.same(m(x), m(x)))
    m:eval()
    assert.is_true(near.same(m(x), m(x)))
  end)

  it("refuses heads that do not divide and inputs that do not fit", function()
    assert.matches("3 heads do not divide a width of 8", message(nn.MultiHeadAttention, 8, 3))
    assert.matches("query [2,8]", message(nn.MultiHeadAttention(8, 2), weft.ones { 2, 8 }), 1, true)
  end)
end)
