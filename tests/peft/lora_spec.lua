-- lora_spec.lua: LoRA on small models: matching, counts, freezing, gradients, merging, files, errors.
local weft = require "weft"
local near = require "tests.support.near"
local json = require "weft.io.json"
local files = require "weft.files"
local safetensors = require "weft.io.safetensors"
local nn, peft = weft.nn, weft.peft

local function message(fn, ...)
  local ok, text = pcall(fn, ...)
  assert.is_false(ok, "an error was expected")
  return text
end

local Block = nn.Module "Block"
function Block:init(n)
  self.norm = nn.LayerNorm(n)
  self.query = nn.Linear(n, n)
  self.value = nn.Linear(n, n)
  self.fc1 = nn.Linear(n, 2 * n)
  self.fc2 = nn.Linear(2 * n, n)
end
function Block:forward(x)
  local h = self.norm(x)
  return x + self.fc2(self.fc1(self.query(h) * self.value(h)):tanh())
end

local Net = nn.Module "Net"
function Net:init(n, layers)
  local list = {}
  for i = 1, layers do list[i] = Block(n) end
  self.layer = nn.ModuleList(list)
  self.classifier = nn.Linear(n, 3)
end
function Net:forward(x)
  for _, block in ipairs(self.layer) do x = block(x) end
  return self.classifier(x)
end

local function net() return Net(6, 3):initialize(1) end

local function stir(m, seed)
  weft.no_grad(function()
    local stream = weft.random.stream("stir", seed or 1)
    for name, t in m:named_parameters() do
      if name:find "lora_B" then
        local shape = t.shape
        shape.rng, shape.dtype = stream, t.dtype
        t:copy_(weft.randn(shape) * 0.3)
      end
    end
  end)
  return m
end

local function temporary()
  local dir = os.tmpname()
  os.remove(dir)
  return dir
end

local function targets(m)
  local list = {}
  for path, x in m:named_modules() do
    if x.type == "LoraLinear" then list[#list + 1] = path end
  end
  return table.concat(list, " ")
end

describe("the count line", function()
  it("is PEFT's, for DINOv2-base with rank 16 on query and value", function()
    local dinov2 = require "weft.models.dinov2"
    local before = weft.memory().live
    local m = nn.on_meta(function() return dinov2.new "base" end)
    peft.lora(m, { rank = 16, alpha = 32, dropout = 0.1, targets = { "query", "value" } })
    assert.equal("trainable params: 589,824 || all params: 87,170,304 || trainable%: 0.6766", peft.describe(m))
    assert.is_true(weft.memory().live - before < 2 ^ 20)
    assert.matches("adapter default: r 16, alpha 32: x2; 24 modules (query 12, value 12); active, trains", peft.summary(m), 1, true)
    assert.same({ 2 }, peft.scales(m))
    assert.matches("768 -> 768; default: r 16, alpha 32: x2, dropout 0.1", tostring(m), 1, true)
  end)

  it("follows the table of sizes and ranks", function()
    local dinov2 = require "weft.models.dinov2"
    for _, case in ipairs {
      { "small", 16, { "query", "value" }, "294,912 || all params: 22,351,488 || trainable%: 1.3194" },
      { "large", 16, { "query", "value" }, "1,572,864 || all params: 305,941,504 || trainable%: 0.5141" },
      { "giant", 16, { "query", "value" }, "3,932,160 || all params: 1,140,412,928 || trainable%: 0.3448" },
      { "base", 4, { "query", "value" }, "147,456 " }, { "base", 64, { "query", "value" }, "2,359,296 " },
      { "base", 16, { "query", "key", "value", "attention.output.dense" }, "1,179,648 " },
      { "base", 16, "all-linear", "2,654,208 " }, { "large", 16, "all-linear", "7,077,888 " },
    } do
      local m = nn.on_meta(function() return dinov2.new(case[1]) end)
      peft.lora(m, { rank = case[2], targets = case[3] })
      assert.matches("trainable params: " .. case[4], peft.describe(m), 1, true)
    end
  end)

  it("is nil for a model without adapters", function() assert.is_nil(peft.describe(net())) end)
end)

describe("a new adapter", function()
  it("changes no bit of the output", function()
    local m = net()
    local x = weft.randn { 40, 6 }
    local y = weft.no_grad(m, x)
    for _, o in ipairs { {}, { rslora = true }, { init = "gaussian" }, { dora = true } } do
      o.targets, o.adapter = { "query", "fc1" }, "a"
      peft.lora(m, o)
      if o.dora then near.near(weft.no_grad(m, x), y, 1e-6)
      else assert.is_true(near.same(weft.no_grad(m, x), y)) end
      peft.delete(m, "a")
    end
  end)

  it("draws A inside its bound and leaves B zero", function()
    local m = peft.lora(net(), { rank = 4, targets = { "fc2" } })
    local linear = m.layer[1].fc2
    assert.is_true(linear.lora_A.default.weight:abs():max():item() <= 1 / math.sqrt(12))
    assert.is_true(linear.lora_A.default.weight:abs():max():item() > 0.8 / math.sqrt(12))
    assert.equal(0, linear.lora_B.default.weight:abs():max():item())
    assert.same({ 4, 12 }, linear.lora_A.default.weight.shape)
    assert.same({ 6, 4 }, linear.lora_B.default.weight.shape)
  end)

  it("draws by seed and name: neither other adapters nor the order of targets matter", function()
    local a = peft.lora(net(), { rank = 2, targets = { "query" }, seed = 3 })
    weft.randn { 7 }
    local b = peft.lora(net(), { rank = 2, targets = { "value", "fc1", "query" }, seed = 3 })
    assert.is_true(near.same(a.layer[2].query.lora_A.default.weight, b.layer[2].query.lora_A.default.weight))
    assert.is_false(near.same(a.layer[2].query.lora_A.default.weight, a.layer[1].query.lora_A.default.weight))
  end)

  it("names its tensors as PEFT does in memory", function()
    local state = peft.lora(net(), { targets = { "query" }, adapter = "cats" }):state_dict()
    assert.is_not_nil(state["layer.0.query.base_layer.weight"])
    assert.is_not_nil(state["layer.0.query.lora_A.cats.weight"])
    assert.is_not_nil(state["layer.0.query.lora_B.cats.weight"])
    assert.is_nil(state["layer.0.query.weight"])
  end)

  it("freezes all but itself", function()
    local m = peft.lora(net(), { rank = 2, targets = { "query" } })
    for name, t in m:named_parameters() do assert.equal(name:find "lora_" ~= nil, t.requires_grad, name) end
    m(weft.randn { 2, 6 }):sum():backward()
    for name, t in m:named_parameters() do assert.equal(name:find "lora_" ~= nil, t.grad ~= nil, name) end
  end)

  it("gives A a gradient of exactly 0 at first, and not once B has moved", function()
    local m = peft.lora(net(), { rank = 2, alpha = 4, targets = { "query" } })
    local o = weft.optim.AdamW(m, { lr = 0.1 })
    local x = weft.randn { 8, 6 }
    local function step()
      m:zero_grad()
      m(x):pow(2):sum():backward()
      o:step()
      local g = 0
      for name, t in m:named_parameters() do
        if name:find "lora_A" then g = math.max(g, t.grad:abs():max():item()) end
      end
      return g
    end
    assert.equal(0, step())
    assert.is_true(step() > 0)
  end)

  it("has gradients that agree with differences", function()
    for _, o in ipairs { {}, { lora_bias = true }, { rslora = true } } do
      o.rank, o.alpha, o.targets = 2, 6, { "query", "fc2" }
      local m = stir(peft.lora(Net(4, 1):to "float64", o))
      local linear = m.layer[1].query
      local x = weft.randn { 3, 4, dtype = "float64", requires_grad = true }
      assert(weft.gradcheck(function(t) return m(t) end,
        { x, linear.lora_A.default.weight, linear.lora_B.default.weight, m.layer[1].fc2.lora_A.default.weight }))
    end
  end)

  it("drops the input of its branch alone, with its own draws", function()
    local m = stir(peft.lora(net(), { rank = 2, dropout = 0.5, targets = { "query" } })):assign_paths()
    local linear = m.layer[1].query
    local x = weft.randn { 5, 6 }
    m:eval()
    assert.is_true(near.same(linear(x), linear(x)))
    m:train()
    assert.is_false(near.same(linear(x), linear(x)))
    -- with A of ones and B of ones the branch is a sum over what was kept
    weft.no_grad(function()
      linear.lora_A.default.weight:fill_(1)
      linear.lora_B.default.weight:fill_(1)
    end)
    local ones = weft.ones { 200, 6 }
    local branch = (linear(ones) - linear.base_layer(ones)) / linear:scale_of "default" / 2
    local kept = near.numbers(branch:narrow(2, 1, 1))
    local mean = 0
    for _, v in ipairs(kept) do
      assert.is_true(math.abs(v / 2 - math.floor(v / 2 + 0.5)) < 1e-4)
      mean = mean + v / #kept
    end
    assert.is_true(math.abs(mean - 6) < 0.5)
  end)

  it("replays its draws in a checkpointed function", function()
    local m = stir(peft.lora(net(), { rank = 2, dropout = 0.5, targets = { "query" } })):assign_paths()
    local x = weft.randn { 5, 6 }
    local function gradient(run)
      m:zero_grad()
      weft.manual_seed(4)
      run():sum():backward()
      return m.layer[1].query.lora_A.default.weight.grad:clone()
    end
    local plain = gradient(function() return m(x) end)
    local again = gradient(function() return weft.checkpoint(function() return m(x) end) end)
    assert.is_true(near.same(plain, again))
  end)
end)

describe("matching", function()
  local function on(options) return targets(peft.lora(net(), options)) end

  it("takes names by their whole end, and paths whole", function()
    assert.equal("layer.0.query layer.1.query layer.2.query", on { targets = { "query" } })
    assert.equal("layer.1.fc1", on { targets = { "layer.1.fc1" } })
    assert.equal("layer.1.fc1", on { targets = { "1.fc1" } })
    assert.matches("targets: uery matches no Linear, Conv2d or Embedding; did you mean query?", message(on, { targets = { "uery" } }), 1, true)
  end)
  it("wants every entry to match something", function()
    local m = net()
    local text = message(peft.lora, m, { targets = { "value", "querry" } })
    assert.matches("targets: querry matches no Linear, Conv2d or Embedding; did you mean query?", text, 1, true)
    assert.equal("", targets(m))
    assert.is_true(m.classifier.weight.requires_grad)
    assert.matches("layer.0.norm is a LayerNorm; adapters go on Linear", message(on, { targets = { "norm" } }), 1, true)
  end)
  it("takes a regular expression for whole paths", function()
    assert.equal("layer.0.query layer.0.value layer.2.query layer.2.value", on { targets = [[layer\.(0|2)\.(query|value)]] })
    assert.matches("matches no Linear", message(on, { targets = "query" }))
    assert.matches("the pattern (", message(on, { targets = "(" }), 1, true)
  end)
  it("reads patterns as Python does", function()
    local full = require("weft.peft.regex").full
    for _, case in ipairs {
      { [==[layer\.\d{,2}\.q]==], "layer.1.q", true }, { [==[layer\.\d{,2}\.q]==], "layer.123.q", false },
      { [==[layer\.\d{,2}\.q]==], "layer.{,2}.q", false }, { [==[a\Z]==], "a", true }, { [==[[]x]+]==], "]x", true },
      { [==[[^]x]+]==], "]x", false }, { [==[[[:a]+]==], "[:a", true }, { [==[[[:alpha:]]+]==], "[]", true },
      { [==[(?P<n>q|v)(?P=n)]==], "qq", true }, { [==[(?i)QUERY]==], "query", true }, { [==[.*\.(query|value)$]==], "x.query", true },
      { [==[\{,2}]==], "{,2}", true }, { [==[[{,2}]+]==], "{,2}", true }, { [==[q|qv]==], "qv", true },
      { [==[(?:a|b)++c]==], "abc", true }, { [==[[\]\[]+]==], "[]", true }, { [==[(?!.*mlp).*fc]==], "a.fc", true },
      { [==[(?<=x\.)q]==], "q", false }, { [==[x\.(?<=x\.)q]==], "x.q", true },
    } do
      assert.equal(case[3], full(case[1], case[2]), case[1] .. " against " .. case[2])
    end
  end)
  it("takes all linear layers but the head", function()
    assert.equal(12, select(2, on({ targets = "all-linear" }):gsub("layer", "")))
    assert.is_nil(on({ targets = "all-linear" }):find "classifier")
  end)
  it("leaves out what exclude names, and what is saved whole", function()
    assert.equal("layer.0.query layer.2.query", on { targets = { "query" }, exclude = { "1.query" } })
    assert.equal("layer.0.query", on { targets = { "query" }, exclude = [[layer\.[12].*]] })
    assert.is_nil(on({ targets = { "query", "classifier" }, exclude = {}, modules_to_save = { "layer.1" } }):find "layer.1")
  end)
  it("takes some layers by number", function()
    assert.equal("layer.0.query layer.2.query", on { targets = { "query" }, layers = { 0, 2 } })
    assert.equal("layer.1.query", on { targets = { "query" }, layers = 1, layers_pattern = "layer" })
    assert.equal("layer.1.query", on { targets = { "query" }, layers = 1, layers_pattern = { "h", "(block|la[xy]er)" } })
    assert.matches("matches no Linear", message(on, { targets = { "query" }, layers = { 7 } }))
  end)
  it("gives rank and alpha by the first pattern that fits", function()
    local m = peft.lora(net(), { rank = 4, alpha = 8, targets = { "query", "fc1" }, rank_pattern = { ["layer.0.query"] = 2, ["fc1"] = 8 },
      alpha_pattern = { [ [[layer\.2\..*]] ] = 16 } })
    local function sizes(l) return { l.settings.default.rank, l:scale_of "default" } end
    assert.same({ 2, 4 }, sizes(m.layer[1].query))
    assert.same({ 4, 2 }, sizes(m.layer[2].query))
    assert.same({ 4, 4 }, sizes(m.layer[3].query))
    assert.same({ 8, 1 }, sizes(m.layer[1].fc1))
    assert.same({ 8, 2 }, sizes(m.layer[3].fc1))
  end)
  it("scales rsLoRA by the root of the rank", function()
    assert.equal(8, peft.lora(net(), { rank = 16, alpha = 32, rslora = true, targets = { "query" } }).layer[1].query:scale_of "default")
  end)
  it("refuses settings that make no adapter", function()
    for options, text in pairs {
      [{ rank = 0 }] = "rank: a whole number from 1", [{ rank = 2.5 }] = "rank", [{ alpha = -1 }] = "alpha: a number above 0",
      [{ dropout = 1 }] = "dropout must lie in", [{ init = "pisa" }] = "did you mean pissa", [{ targets = {} }] = "targets is empty",
      [{ bias = "some" }] = "bias: unknown choice", [{ rnak = 4 }] = "unknown option rnak; did you mean rank",
      [{ adapter = "a.b" }] = "letters", [{ adapter = "train" }] = "the name of a method", [{ layers = { -1 } }] = "layers",
      [{ modules_to_save = { "classifer" } }] = "did you mean classifier",
    } do
      options.targets = options.targets or { "query" }
      assert.matches(text, message(peft.lora, net(), options), 1, true)
    end
    assert.matches("a module is expected", message(peft.lora, {}))
  end)
end)

describe("switches", function()
  it("train and take part independently of each other", function()
    local m = stir(peft.lora(net(), { rank = 2, targets = { "query" }, adapter = "a" }))
    local x = weft.randn { 4, 6 }
    local alone = weft.no_grad(m, x)
    stir(peft.lora(m, { rank = 3, targets = { "query", "value" }, adapter = "b" }), 2)
    -- b trains already, and takes part once it is activated
    assert.same({ "a" }, peft.active(m))
    stir(m, 1)
    local l = m.layer[1].query
    assert.is_true(l.lora_B.b.weight.requires_grad and l.lora_B.a.weight.requires_grad)
    peft.freeze(m, "a")
    assert.is_false(l.lora_B.a.weight.requires_grad)
    assert.is_true(l.lora_B.b.weight.requires_grad)
    assert.same({ "a" }, peft.active(m))
    peft.activate(m, { "a", "b" })
    assert.is_false(l.lora_B.a.weight.requires_grad)
    local x1 = weft.randn { 4, 6 }
    local expected = l.base_layer(x1)
    for _, name in ipairs { "a", "b" } do expected = expected + weft.matmul(x1, l:delta(name):t()) end
    near.near(l(x1), expected, 1e-5)
    peft.activate(m, {})
    assert.is_true(near.same(l(x1), l.base_layer(x1)))
    peft.freeze(m)
    assert.equal(0, m:count(true))
    peft.unfreeze(m, "b")
    assert.equal(3 * 2 * 3 * 12, m:count(true))
    assert.matches("there is no adapter c", message(peft.activate, m, "c"))
    assert.is_not_nil(alone)
  end)

  it("leave the frozen adapter's tensors and their gradients alone", function()
    local m = stir(peft.lora(net(), { rank = 2, targets = { "query" } }))
    peft.freeze(m)
    m.classifier:unfreeze()
    m(weft.randn { 2, 6 }):sum():backward()
    assert.is_nil(m.layer[1].query.lora_A.default.weight.grad)
    assert.is_not_nil(m.classifier.weight.grad)
  end)

  it("set the strength: 0 is the base, 1 as trained", function()
    local m = stir(peft.lora(net(), { rank = 2, targets = { "query" } }))
    local x = weft.randn { 4, 6 }
    local full = weft.no_grad(m, x)
    local base = peft.disable(m, function() return weft.no_grad(m, x) end)
    assert.is_false(near.same(full, base))
    peft.scale(m, 0)
    assert.is_true(near.same(weft.no_grad(m, x), base))
    peft.scale(m, 1)
    assert.is_true(near.same(weft.no_grad(m, x), full))
    peft.scale(m, 0.5)
    assert.equal(8, m.layer[1].query:scale_of "default")
    assert.matches("scaled by 0.5", message(peft.save, m, temporary()))
  end)

  it("turn adapters off for a function, and on again when it fails", function()
    local m = stir(peft.lora(net(), { rank = 2, targets = { "query" } }))
    local x = weft.randn { 4, 6 }
    local full = weft.no_grad(m, x)
    assert.has_error(function() peft.disable(m, function() error "on purpose" end) end)
    assert.is_true(near.same(weft.no_grad(m, x), full))
  end)

  it("take an adapter off and leave the model as it was", function()
    local m = net()
    local x = weft.randn { 4, 6 }
    local before, text = weft.no_grad(m, x), tostring(m)
    stir(peft.lora(m, { rank = 2, targets = { "query" }, modules_to_save = { "classifier" } }))
    peft.delete(m, "default")
    m:unfreeze()
    assert.is_true(near.same(weft.no_grad(m, x), before))
    assert.equal(text, tostring(m))
  end)

  it("find the adapters of a part inside a larger model", function()
    local Outer = nn.Module "Outer"
    function Outer:init() self.vision, self.head = peft.lora(net(), { rank = 2, targets = { "query" } }), nn.Linear(3, 2) end
    local m = Outer()
    assert.same({ "default" }, peft.adapters(m))
    assert.equal(3 * 24 + 8, m:count(true))
    local dir = temporary()
    peft.save(stir(m), dir)
    local state = assert(safetensors.load(dir .. "/adapter_model.safetensors"))
    assert.is_not_nil(state["base_model.model.layer.0.query.lora_A.weight"])
    files.remove_dir(dir)
  end)
end)

describe("merging", function()
  it("gives the same output to 1e-5, and the same bits after it is undone", function()
    for _, o in ipairs { {}, { lora_bias = true }, { dora = true }, { rslora = true } } do
      o.rank, o.targets = 2, { "query", "fc2" }
      local m = stir(peft.lora(net(), o))
      local x = weft.randn { 20, 6 }
      local y = weft.no_grad(m, x)
      local kept = m.layer[1].query.base_layer.weight:clone()
      peft.merge(m)
      near.near(weft.no_grad(m, x), y, 1e-5)
      assert.is_false(near.same(m.layer[1].query.base_layer.weight, kept))
      assert.matches("merged already", message(peft.merge, m))
      assert.matches("unmerge first", message(peft.activate, m, "default"))
      peft.unmerge(m)
      assert.is_true(near.same(weft.no_grad(m, x), y))
      assert.is_true(near.same(m.layer[1].query.base_layer.weight, kept))
    end
  end)

  it("refuses what is not finite, by name, and changes nothing", function()
    local m = stir(peft.lora(net(), { rank = 2, targets = { "query" } }))
    weft.no_grad(function() m.layer[2].query.lora_B.default.weight:fill_(math.huge) end)
    local kept = m.layer[1].query.base_layer.weight:clone()
    assert.matches("layer.1.query: .*not finite", message(peft.merge, m))
    assert.is_true(near.same(m.layer[1].query.base_layer.weight, kept))
    assert.is_false(m.layer[1].query.merged)
  end)

  it("unloads to a plain model", function()
    local m = net()
    local names = {}
    for name in m:named_parameters() do names[#names + 1] = name end
    stir(peft.lora(m, { rank = 2, targets = { "query" }, modules_to_save = { "classifier" } }))
    weft.no_grad(function() m.classifier.modules_to_save.default.bias:fill_(3) end)
    local x = weft.randn { 4, 6 }
    local y = weft.no_grad(m, x)
    peft.merge_and_unload(m)
    near.near(weft.no_grad(m, x), y, 1e-5)
    local after = {}
    for name in m:named_parameters() do after[#after + 1] = name end
    assert.same(names, after)
    assert.is_nil(peft.describe(m))
  end)
end)

describe("files", function()
  local dir
  before_each(function() dir = temporary() end)
  after_each(function() files.remove_dir(dir) end)

  it("come back as they were, in every kind", function()
    local x = weft.randn { 9, 6 }
    for _, o in ipairs {
      { targets = { "query", "value" } }, { targets = "all-linear", rslora = true }, { targets = [[layer\.1\..*]], dora = true },
      { targets = { "query" }, lora_bias = true, bias = "lora_only" }, { targets = { "fc1" }, bias = "all", layers = { 0, 2 } },
      { targets = { "query" }, modules_to_save = { "classifier", "norm" }, rank_pattern = { ["layer.1.query"] = 5 } },
      { targets = { "query", "fc2" }, exclude = { "0.query" }, alpha_pattern = { fc2 = 3 }, init = "gaussian" },
    } do
      o.rank, o.alpha = 3, 7
      local m = stir(peft.lora(net(), o))
      weft.no_grad(function()
        for name, t in m:named_parameters() do
          if t.requires_grad and not name:find "lora_B" then t:add_(0.05) end
        end
      end)
      local y = weft.no_grad(m, x)
      peft.save(m, dir, { base = "net" })
      local again, report = peft.load(net(), dir)
      assert.is_true(near.same(weft.no_grad(again, x), y))
      assert.equal(0, again:count(true))
      assert.matches("^adapter default: %d+ of %d+ modules", report)
      peft.unfreeze(again)
      assert.equal(m:count(true), again:count(true))
    end
  end)

  it("hold what PEFT's do", function()
    peft.save(stir(peft.lora(net(), { rank = 2, alpha = 4, dropout = 0.1, targets = { "value", "query" } })), dir, { base = "org/net" })
    local c = assert(json.read(dir .. "/adapter_config.json"))
    assert.equal("LORA", c.peft_type)
    assert.equal(json.null, c.task_type)
    assert.same({ 2, 4, 0.1, "org/net", true, "none" }, { c.r, c.lora_alpha, c.lora_dropout, c.base_model_name_or_path, c.inference_mode, c.bias })
    assert.equal("query,value", table.concat(c.target_modules, ","))
    for _, key in ipairs { "revision", "exclude_modules", "fan_in_fan_out", "use_rslora", "use_dora", "init_lora_weights", "modules_to_save",
      "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern", "lora_bias", "auto_mapping" } do
      assert.is_not_nil(c[key], key)
    end
    local text = assert(files.read(dir .. "/adapter_config.json"))
    assert.matches('^{\n  "alpha_pattern": {},\n  "auto_mapping": null,', text)
    local state, metadata = assert(safetensors.load(dir .. "/adapter_model.safetensors"))
    assert.equal("pt", metadata.format)
    assert.same({ 2, 6 }, state["base_model.model.layer.0.query.lora_A.weight"].shape)
    local readme = assert(files.read(dir .. "/README.md"))
    assert.matches("rank 2, alpha 4 (branch times 2), on 6 modules (query, value)", readme, 1, true)
    assert.matches("It is one of the trained parts", readme, 1, true)
  end)

  it("say what an adapter does", function()
    local m = peft.lora(net(), { rank = 2, alpha = 4, targets = { "query" } })
    peft.save(m, dir)
    local _, report = peft.load(net(), dir, { adapter = "cats" })
    assert.equal("adapter cats: 3 of 3 modules, scale 2.0, every B is zero: this adapter changes nothing", report)
    peft.save(stir(m), dir)
    _, report = peft.load(net(), dir, { adapter = "cats" })
    assert.matches("^adapter cats: 3 of 3 modules, scale 2.0, median norm of dW/W %d+ %%$", report)
  end)

  it("are refused as a whole when tensors are missing, extra or misshapen", function()
    peft.save(stir(peft.lora(net(), { rank = 2, targets = { "query" } })), dir)
    local state = assert(safetensors.load(dir .. "/adapter_model.safetensors"))
    state["base_model.model.layer.0.query.lora_A.weight"] = nil
    state["base_model.model.layer.1.query.lora_A.weight"] = weft.ones { 4, 6 }
    state["base_model.model.layer.1.qwery.lora_A.weight"] = weft.ones { 2, 6 }
    assert(safetensors.save(dir .. "/adapter_model.safetensors", state))
    local m = net()
    local text = message(peft.load, m, dir)
    assert.matches("3 entries do not fit; nothing was changed", text, 1, true)
    assert.matches("missing base_model.model.layer.0.query.lora_A.weight", text, 1, true)
    assert.matches("extra base_model.model.layer.1.qwery.lora_A.weight", text, 1, true)
    assert.matches("layer.1.query.lora_A.weight is [4,6], expected [2,6]; the rank in the settings is 2", text, 1, true)
    assert.equal("", targets(m))
    assert.is_true(m.classifier.weight.requires_grad)
  end)

  it("are refused on another base, unless forced", function()
    peft.save(stir(peft.lora(net(), { rank = 2, targets = { "query" } })), dir)
    local other = Net(6, 3):initialize(2)
    assert.matches("was trained on another base", message(peft.load, other, dir))
    peft.load(other, dir, { force = true })
    assert.matches("missing base_model.model.layer.2", message(peft.load, Net(6, 4):initialize(1), dir):gsub("layer.3", "layer.2"), 1, true)
  end)

  it("are refused when their settings ask for what weft does not compute", function()
    peft.save(stir(peft.lora(net(), { rank = 2, targets = { "query" } })), dir)
    local path = dir .. "/adapter_config.json"
    local function with(key, value)
      local c = assert(json.read(path))
      c[key] = value
      assert(json.write(path, c))
      local text = message(peft.load, net(), dir)
      c[key] = json.null
      assert(json.write(path, c))
      return text
    end
    assert.matches("layer_replication is set", with("layer_replication", { { 0, 2 } }))
    assert.matches("target_parameters is set", with("target_parameters", { "x" }))
    assert.matches("the key use_magic is not known", with("use_magic", true))
    assert.matches("target_modules is missing", with("target_modules", nil))
    assert.matches("peft_type LORA is expected, got IA3", with("peft_type", "IA3"))
    assert.matches("adapter_config.json", message(peft.load, net(), dir .. "/nowhere"), 1, true)
  end)

  it("that began with a part of the base take it out again, and are refused where it can't be found", function()
    for _, kind in ipairs { "pissa", "olora" } do
      for _, dora in ipairs { false, true } do
        local m = peft.lora(net(), { rank = 2, alpha = 5, targets = { "query" }, init = kind, dora = dora })
        weft.no_grad(function()
          for _, t in m:named_parameters() do
            if t.requires_grad then t:add_(0.1) end
          end
        end)
        -- as PEFT writes them when nothing else is asked for: what was trained, and how it began
        local state = {}
        for path, layer in m:named_modules() do
          for _, e in ipairs(layer.is_lora and layer:tensors "default" or {}) do
            state[("base_model.model.%s.%s"):format(path, e.tail)] = e.tensor
          end
        end
        files.make_dirs(dir)
        assert(safetensors.save(dir .. "/adapter_model.safetensors", state))
        local settings = { peft_type = "LORA", r = 2, lora_alpha = 5, target_modules = json.array { "query" }, use_dora = dora,
          init_lora_weights = kind }
        assert(json.write(dir .. "/adapter_config.json", settings))
        local x, fresh = weft.randn { 5, 6 }, net()
        local before = fresh.layer[1].query.weight:clone()
        local back, report = peft.load(fresh, dir)
        near.near(weft.no_grad(back, x), weft.no_grad(m, x), 1e-5, kind)
        assert.matches(kind .. ": what it began with was taken out of the base", report, 1, true)
        peft.delete(back, "default")
        near.near(fresh.layer[1].query.weight, before, 1e-5)
        for _, other in ipairs { "pissa_niter_4", "corda", "loftq", "lora_ga" } do
          settings.init_lora_weights = other
          assert(json.write(dir .. "/adapter_config.json", settings))
          assert.matches("init_lora_weights " .. other .. ": it began with a part of the base that cannot be found again",
            message(peft.load, net(), dir), 1, true)
        end
      end
    end
  end)

  it("tell of settings that change nothing, and leave unknown ones out when forced", function()
    peft.save(stir(peft.lora(net(), { rank = 2, targets = { "query" } })), dir)
    local path = dir .. "/adapter_config.json"
    local c = assert(json.read(path))
    for key, v in pairs { eva_config = { rho = 2 }, fan_in_fan_out = true, peft_version = "9", megatron_core = "x", qalora_group_size = 8 } do c[key] = v end
    assert(json.write(path, c))
    local _, report = peft.load(net(), dir)
    assert.matches("\n  eva_config changes nothing here; fan_in_fan_out changes nothing here$", report)
    c.use_magic = { 1 }
    assert(json.write(path, c))
    assert.matches("the key use_magic is not known to weft; force = true leaves it out", message(peft.load, net(), dir), 1, true)
    _, report = peft.load(net(), dir, { force = true })
    assert.matches("the unknown key use_magic was left out", report, 1, true)
    for _, key in ipairs { "kasa_config", "monteclora_config", "trainable_token_indices", "use_qalora" } do
      c[key] = { 1 }
      assert(json.write(path, c))
      assert.matches(key .. " is set", message(peft.load, net(), dir, { force = true }), 1, true)
      c[key] = nil
    end
    -- a table that the output layer shares would need both to have the adapter
    local tied = weft.models.llama { vocab = 11, width = 8, layers = 1, heads = 2, ff = 8 }
    peft.save(stir(peft.lora(tied, { rank = 2, targets = { "q_proj" } })), dir)
    c = assert(json.read(path))
    c.ensure_weight_tying = true
    assert(json.write(path, c))
    peft.delete(tied, "default")
    assert.matches("ensure_weight_tying is set", message(peft.load, tied, dir))
  end)

  it("are refused where the two sets of names disagree", function()
    local dinov2 = require "weft.models.dinov2"
    local model = dinov2.from_pretrained "tests/golden/dinov2_mlp"
    peft.save(stir(peft.lora(model, { rank = 2, targets = { "query" } })), dir)
    local state = assert(safetensors.load(dir .. "/adapter_model.safetensors"))
    local key = "base_model.model.encoder.layer.0.attention.q_proj.lora_B.weight"
    assert.is_not_nil(state[key])
    state[key] = state[key] * 2
    assert(safetensors.save(dir .. "/adapter_model.safetensors", state))
    assert.matches("hold different values", message(peft.load, dinov2.from_pretrained "tests/golden/dinov2_mlp", dir))
  end)

  it("go on top of an adapter only when that is asked for", function()
    local m = stir(peft.lora(net(), { rank = 2, targets = { "query" } }))
    peft.save(m, dir)
    local x = weft.randn { 4, 6 }
    local y = weft.no_grad(m, x)
    stir(m, 9)
    assert.is_false(near.same(weft.no_grad(m, x), y))
    assert.matches("there is an adapter default already", message(peft.load, m, dir))
    peft.load(m, dir, { replace = true })
    assert.is_true(near.same(weft.no_grad(m, x), y))
    peft.load(m, dir, { adapter = "second" })
    assert.same({ "default" }, peft.active(m))
  end)

  it("leave loaded tensors alone when the model is initialized", function()
    peft.save(stir(peft.lora(net(), { rank = 2, targets = { "query" } })), dir)
    local m = peft.load(net(), dir)
    local a = m.layer[1].query.lora_A.default.weight:clone()
    m:initialize(77)
    assert.is_true(near.same(a, m.layer[1].query.lora_A.default.weight))
  end)
end)

describe("the spectrum", function()
  it("tells how much each module changes", function()
    local m = stir(peft.lora(net(), { rank = 2, targets = { "query" } }))
    local rows = peft.spectrum(m, { values = true })
    assert.equal(3, #rows)
    local l = m.layer[2].query
    assert.equal("layer.1.query", rows[2].path)
    assert.is_true(math.abs(rows[2].delta - l:delta("default"):norm():item()) < 1e-5)
    local s = rows[2].values
    assert.is_true(math.abs(math.sqrt(s[1] ^ 2 + s[2] ^ 2) - rows[2].delta) < 1e-4)
    assert.matches("layer.1.query", tostring(m:lora_spectrum()))
  end)
end)
