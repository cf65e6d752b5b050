-- layers_spec.lua: adapters on Conv2d and Embedding, and on gates that are two modules elsewhere: outputs and
-- gradients as PEFT has them, merging, files and the ways to begin.
local weft = require "weft"
local compare = require "tests.models.compare"
local near = require "tests.support.near"
local run = require "tests.support.command"
local json = require "weft.io.json"
local safetensors = require "weft.io.safetensors"
local dinov2 = require "weft.models.dinov2"
local llama = require "weft.models.llama"
local peft, nn = weft.peft, weft.nn

local goldens = {
  conv2d = "dinov2_mlp", conv2d_dora = "dinov2_mlp", embedding = "llama_tiny", embedding_dora = "llama_tiny",
  gates = "dinov2_swiglu", gates_dora = "dinov2_swiglu", one_gate = "dinov2_swiglu",
}

local function base_of(name)
  local dir = "tests/golden/" .. goldens[name]
  if goldens[name] == "llama_tiny" then return llama.from_pretrained(dir) end
  return (dinov2.from_pretrained(dir))
end

local function output(m, g)
  if g.input_ids then return m:logits(m(g.input_ids).last_hidden_state) end
  return m(g.pixel_values).last_hidden_state
end

local function draw(shape, use, dtype)
  shape.rng, shape.dtype = weft.random.stream("layers/" .. use, 1), dtype or "float64"
  return weft.randn(shape)
end

describe("an adapter of PEFT's on", function()
  local folder, remove
  setup(function() folder, remove = run.folder() end)
  teardown(function() remove() end)

  for name in pairs(goldens) do
    describe(name, function()
      local dir = "tests/golden/lora_layers/" .. name
      local g = compare.golden("lora_layers/" .. name .. "/io.safetensors")
      local m = peft.load(base_of(name), dir, { trainable = true })

      it("gives the output that PEFT gave", function() near.near(output(m, g), g.output, 5e-6) end)

      it("gives the gradients that PEFT gave", function()
        weft.backward((output(m, g) * g.loss_weight):sum())
        local n = 0
        for path, t in m:named_parameters() do
          local plain = path:gsub("%.default", "")
          if name:find "gate" then plain = plain:gsub("weights_out", "down_proj") end
          local expected = g["grad.base_model.model." .. plain]
          if t.requires_grad and not plain:find("weights_in", 1, true) then
            assert(expected, path .. " should not train")
            near.near(t.grad, expected:reshape(t.shape), 3e-5, path)
            n = n + 1
          elseif t.requires_grad and plain:find "magnitude" then
            local head = plain:match "^(.*)weights_in"
            local both = weft.cat({ g["grad.base_model.model." .. head .. "gate_proj.lora_magnitude_vector.weight"],
              g["grad.base_model.model." .. head .. "up_proj.lora_magnitude_vector.weight"] }, 1)
            near.near(t.grad, both, 3e-5, path)
            n = n + 1
          end
        end
        assert.is_true(n > 0 or name == "one_gate")
      end)

      it("merges, comes apart with the bits it had, and leaves a plain model behind", function()
        local before = output(m, g)
        weft.no_grad(function()
          peft.merge(m)
          near.near(output(m, g), g.output, 1e-5)
          peft.unmerge(m)
        end)
        assert.is_true(compare.same(output(m, g), before))
        local plain = peft.merge_and_unload(peft.load(base_of(name), dir))
        for path in plain:named_parameters() do assert.is_nil(path:find "lora", path) end
        near.near(output(plain, g), g.output, 1e-5)
      end)

      it("is written and read again in every dialect, number for number", function()
        local mine = peft.load(base_of(name), dir)
        local y = output(mine, g)
        for _, which in ipairs { "both", "transformers4", "transformers5" } do
          local out = ("%s/%s-%s"):format(folder, name, which)
          peft.save(mine, out, { dialect = which })
          near.near(output(peft.load(base_of(name), out), g), y, 1e-6)
          peft.convert(dir, out .. "-converted", { dialect = which })
          near.near(output(peft.load(base_of(name), out .. "-converted"), g), y, 1e-6)
        end
      end)
    end)
  end

  it("the gates has the names and shapes of PEFT's when written for transformers 5", function()
    local mine = peft.load(base_of "gates_dora", "tests/golden/lora_layers/gates_dora")
    peft.save(mine, folder .. "/five", { dialect = "transformers5" })
    local theirs = assert(safetensors.load "tests/golden/lora_layers/gates_dora/adapter_model.safetensors")
    local ours = assert(safetensors.load(folder .. "/five/adapter_model.safetensors"))
    for key, t in pairs(theirs) do
      local shape = t.shape
      -- two adapters of rank 2 are one of rank 4
      if key:find "lora_A" then shape[1] = 4 elseif key:find "lora_B" then shape[2] = 4 end
      assert.same(shape, assert(ours[key], key).shape)
    end
    for key in pairs(ours) do assert(theirs[key], key) end
    assert.same({ "gate_proj", "up_proj" }, json.read(folder .. "/five/adapter_config.json").target_modules)
  end)

  it("the gates stays of its rank through a round trip", function()
    local mine = peft.lora(base_of "gates", { rank = 2, init = "random", targets = { "weights_in" } })
    peft.save(mine, folder .. "/round", { dialect = "transformers5" })
    local back = peft.load(base_of "gates", folder .. "/round")
    local at = "encoder.layer.0.mlp.weights_in"
    assert.equal(2, back:get(at).settings.default.rank)
    assert.is_true(compare.same(back:get(at).lora_B.default.weight, mine:get(at).lora_B.default.weight))
  end)

  it("another table than this model's is refused, unless forced", function()
    local model = base_of "embedding"
    local out = folder .. "/table"
    peft.save(peft.load(model, "tests/golden/lora_layers/embedding"), out)
    local path = out .. "/adapter_model.safetensors"
    local state = assert(safetensors.load(path))
    local key = "base_model.model.model.embed_tokens.base_layer.weight"
    state[key] = base_of("embedding").model.embed_tokens.weight:detach():clone()
    assert(safetensors.save(path, state))
    assert.has_no.errors(function() peft.load(base_of "embedding", out) end)
    state[key] = state[key] + 1
    assert(safetensors.save(path, state))
    assert.error_matches(function() peft.load(base_of "embedding", out) end, "another table than this model's")
  end)
end)

describe("an adapter on", function()
  local function conv(o)
    local m = nn.Sequential(nn.Conv2d(2, 4, { kernel = 3, stride = 2, padding = 1 }):to "float64")
    o.targets, o.rank, o.alpha, o.init = { "0" }, 2, 3, "random"
    return peft.lora(m, o), draw({ 2, 2, 5, 4 }, "pixels")
  end
  local function embedding(o)
    local m = nn.Sequential(nn.Embedding(7, 4):to "float64")
    o.targets, o.rank, o.alpha, o.init = { "0" }, 2, 3, "random"
    return peft.lora(m, o), weft.tensor({ { 1, 0, 6 }, { 3, 1, 1 } }, { dtype = "int64" })
  end

  for kind, make in pairs { Conv2d = conv, Embedding = embedding } do
    for _, dora in ipairs { false, true } do
      it(kind .. (dora and " with DoRA" or "") .. " has gradients that finite differences confirm", function()
        local m, x = make { dora = dora }
        local weight = draw(m(x).shape, "loss")
        local checked = 0
        for path, t in m:named_parameters() do
          if t.requires_grad then
            -- DoRA holds the row lengths fixed, so a difference in A or B would move them too
            if not dora or path:find "magnitude" then
              m:zero_grad()
              weft.backward((m(x) * weight):sum())
              local grad, eps = t.grad:clone(), 1e-6
              for i = 0, math.min(t:numel(), 6) - 1 do
                local function at(d)
                  weft.no_grad(function() t:detach():data()[i] = t:detach():data()[i] + d end)
                  return (m(x) * weight):sum():item()
                end
                local up = at(eps)
                local down = at(-2 * eps)
                at(eps)
                assert.near((up - down) / (2 * eps), grad:contiguous():data()[i], 1e-6)
              end
              checked = checked + 1
            end
          end
        end
        assert.is_true(checked > 0)
      end)
    end

    it(kind .. " combines and counts like any other", function()
      local m, x = make { adapter = "one" }
      peft.lora(m, { targets = { "0" }, rank = 3, alpha = 3, init = "random", adapter = "two", seed = 9 })
      peft.activate(m, { "one", "two" })
      local y = m(x)
      peft.add_weighted_adapter(m, { adapters = { "one", "two" }, adapter = "sum" })
      peft.activate(m, "sum")
      near.near(m(x), y, 1e-12)
      assert.equal(5, m[1].settings.sum.rank)
      peft.delete(m, "one")
      peft.delete(m, "two")
      peft.delete(m, "sum")
      assert.equal(kind, m[1].type)
    end)

    for _, init in ipairs { "pissa", "olora", "pissa_niter_3" } do
      it(kind .. " begins by " .. init .. " without changing anything, and gives the base back", function()
        local m = nn.Sequential(kind == "Conv2d" and nn.Conv2d(2, 6, { kernel = 2 }) or nn.Embedding(9, 5))
        local x = kind == "Conv2d" and draw({ 1, 2, 4, 4 }, "x", "float32") or weft.tensor({ 1, 8, 3 }, { dtype = "int64" })
        local y, weight = m(x), m[1].weight:detach():clone()
        peft.lora(m, { targets = { "0" }, rank = 2, init = init })
        near.near(m(x), y, 1e-5)
        assert.is_true(compare.error(m[1].base_layer.weight, weight) > 1e-2)
        peft.delete(m, "default")
        near.near(m[1].weight, weight, 1e-5)
      end)
    end
  end

  it("convolutions in groups is refused", function()
    local m = nn.Sequential(nn.Conv2d(4, 4, { kernel = 1, groups = 2 }))
    assert.error_matches(function() peft.lora(m, { targets = { "0" } }) end, "one group")
  end)

  it("a tied table leaves the output layer alone, also when merged away", function()
    local m = llama.from_pretrained "tests/golden/llama_tiny"
    peft.lora(m, { targets = { "embed_tokens" }, rank = 2, init = "random" })
    local g = { input_ids = weft.tensor({ { 5, 9, 100 } }, { dtype = "int64" }) }
    local y = output(m, g)
    peft.merge(m)
    near.near(output(m, g), y, 1e-5)
    peft.merge_and_unload(m)
    near.near(output(m, g), y, 1e-5)
    assert.is_false(m.config.tied)
  end)
end)

describe("beginning with", function()
  it("pissa_niter is close to the exact decomposition, and the same each time", function()
    local function begun(init)
      local m = nn.Linear(40, 30, { bias = false })
      m:initialize(3)
      -- a spectrum that falls
      local u, s, vh = weft.svd(m.weight:detach())
      m.weight = (u * (weft.arange(30) * -0.5):exp() * s:sum()):matmul(vh)
      local seq = nn.Sequential(m)
      peft.lora(seq, { targets = { "0" }, rank = 4, init = init, seed = 2 })
      return seq[1]:delta "default", seq[1].base_layer.weight
    end
    local exact, close = begun "pissa", begun "pissa_niter_4"
    near.near(close, exact, 1e-4)
    assert.is_true(compare.same(close, (begun "pissa_niter_4")))
    assert.is_true(compare.error((begun "pissa_niter_0"), exact) > compare.error(close, exact))
  end)

  it("orthogonal has large A and B whose product is zero", function()
    local m = peft.lora(nn.Sequential(nn.Linear(20, 10)), { targets = { "0" }, rank = 4, init = "orthogonal" })
    local a, b = m[1].lora_A.default.weight, m[1].lora_B.default.weight
    assert.is_true(a:abs():max():item() > 0.05 and b:abs():max():item() > 0.05)
    assert.is_true(m[1]:delta("default"):abs():max():item() < 1e-6)
    assert.error_matches(function()
      peft.lora(nn.Sequential(nn.Linear(20, 10)), { targets = { "0" }, rank = 3, init = "orthogonal" })
    end, "an even rank")
  end)

  it("DoRA and dropout in training is the base, undropped", function()
    local m = nn.Sequential(nn.Linear(12, 6))
    local x = draw({ 5, 12 }, "dora", "float32")
    local y = m(x)
    peft.lora(m, { targets = { "0" }, rank = 2, dora = true, dropout = 0.5 })
    near.near(m:train()(x), y, 1e-5)
  end)
end)

describe("EVA", function()
  -- inputs that vary along two directions of six, and little else, about a mean that is not zero
  local function inputs(use)
    local x = draw({ 200, 6 }, use, "float32") * 0.01
    local main = draw({ 200, 2 }, use .. "/main", "float32"):matmul(weft.tensor { { 3, 0, 0, 4, 0, 0 }, { 0, 1, 0, 0, 0, 1 } })
    return x + main + weft.tensor { 5, 5, 5, 5, 5, 5 }
  end
  local function net() return nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 3)) end

  it("begins A along the directions in which inputs vary, and changes nothing", function()
    local m = net()
    local x = inputs "eva"
    local y = m(x)
    peft.lora(m, { targets = { "0" }, rank = 2, init = "eva" })
    -- in parts of unequal size: only all rows together count
    peft.eva(m, function()
      m(x:narrow(1, 1, 30))
      m(x:narrow(1, 31, 170))
    end)
    local a = m[1].lora_A.default.weight
    near.near(a:matmul(a:t()), weft.eye(2), 1e-5)
    local centred = x - x:mean(1, true)
    local _, _, vh = weft.svd(centred:to "float64")
    near.near(a:t():matmul(a), (vh:narrow(1, 1, 2):t():matmul(vh:narrow(1, 1, 2))):to "float32", 1e-4)
    near.near(weft.tensor { 0.6, 0.8 }, weft.tensor { math.abs(a[1][1]:item()), math.abs(a[1][4]:item()) }, 1e-2)
    near.near(m(x), y, 1e-6)
    assert.is_true(a.requires_grad)
    assert.is_nil(m[1].observe)
  end)

  it("moves ranks to where they explain more, and keeps the scale of each branch", function()
    local m = net()
    weft.no_grad(function() m[1].weight:copy_(weft.tensor({ 1, 2, 3, 4, 5, 6 }):unsqueeze(2):matmul(weft.tensor { { 1, 1, 1, 1, 1, 1 } })) end)
    peft.lora(m, { targets = { "0", "1" }, rank = 2, alpha = 4, init = "eva", rslora = true })
    local scale, x = m[1]:scale_of "default", inputs "moves"
    local y = m(x)
    peft.eva(m, function() m(x) end, { rho = 2 })
    -- what the first layer gives lies on a line
    assert.same({ 3, 1 }, { m[1].settings.default.rank, m[2].settings.default.rank })
    assert.near(scale, m[1]:scale_of "default", 1e-12)
    near.near(m(x), y, 1e-5)
    local dir, remove = run.folder()
    peft.save(m, dir .. "/eva")
    local back = peft.load(m:copy(), dir .. "/eva", { adapter = "again", force = true })
    assert.equal(3, back[1].settings.again.rank)
    assert.near(scale, back[1]:scale_of "again", 1e-9)
    remove()
  end)

  it("says what it wants", function()
    local m = peft.lora(net(), { targets = { "0" }, rank = 2 })
    assert.error_matches(function() peft.eva(m, function() end) end, 'not made with init = "eva"')
    m = peft.lora(net(), { targets = { "0" }, rank = 2, init = "eva" })
    assert.error_matches(function() peft.eva(m, function() end) end, "saw 0 inputs")
    assert.error_matches(function() peft.eva(m, function() error "mine" end) end, "mine")
    assert.is_nil(m[1].observe)
  end)
end)
