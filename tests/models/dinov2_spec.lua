-- dinov2_spec.lua: the vision transformer against Hugging Face's outputs and gradients, its counts,
-- names and file formats.
local weft = require "weft"
local compare = require "tests.models.compare"
local dinov2 = require "weft.models.dinov2"
local Module = require("weft.nn.module").base

local function load(kind, overrides) return dinov2.from_pretrained("tests/golden/dinov2_" .. kind, overrides) end

for _, kind in ipairs { "mlp", "swiglu", "registers", "swiglu_registers" } do
  describe("dinov2 " .. kind, function()
    local golden = compare.golden("dinov2_" .. kind .. "/io.safetensors")

    it("gives the golden hidden states at every size", function()
      local model = load(kind)
      for _, size in ipairs { "native", "wide", "large" } do
        local out = weft.no_grad(function() return model(golden[size .. ".pixel_values"], { hidden_states = true }) end)
        for i, h in ipairs(out.hidden_states) do
          compare.close(h, golden[("%s.hidden_states.%d"):format(size, i - 1)], 2e-5, size .. " state " .. i)
        end
        compare.close(out.last_hidden_state, golden[size .. ".last_hidden_state"], 2e-5, size)
        compare.close(out.pooler_output, golden[size .. ".pooler_output"], 2e-5, size .. " pooler")
      end
    end)

    it("gives the golden gradients", function()
      local model = load(kind)
      local pixels = golden["wide.pixel_values"]:clone():requires_grad_()
      local out = model(pixels)
      weft.backward((out.last_hidden_state * golden["wide.loss_weight"]):sum())
      compare.close(pixels.grad, golden["wide.grad.pixel_values"], 2e-5, "pixels")
      local translated, n = {}, 0
      for name, t in pairs(golden) do
        local parameter = name:match "^wide%.grad%.(.*)$"
        if parameter and parameter ~= "pixel_values" then translated[parameter] = t end
      end
      translated = dinov2.keys.translate(translated)
      for name, t in model:named_parameters() do
        local expected = translated[name]
        if name:find "%.key%.bias$" then
          -- zero in exact arithmetic
          local _, apart = compare.error(t.grad, expected)
          assert.is_true(apart < 1e-3)
        elseif expected then
          compare.close(t.grad, expected, 2e-5, name)
          n = n + 1
        end
      end
      assert.is_true(n > 40)
    end)

    it("differs from float64 by rounding alone", function()
      local single, double = load(kind), load(kind):to "float64"
      local pixels = golden["wide.pixel_values"]
      local a = weft.no_grad(function() return single(pixels).last_hidden_state end)
      local b = weft.no_grad(function() return double(pixels:to "float64").last_hidden_state end)
      compare.close(a, b, 5e-6)
    end)

    it("reaches every parameter with a gradient", function()
      local model = load(kind)
      local pixels = golden["native.pixel_values"]
      local mask = model.embeddings.mask_token and weft.arange(0, 50):reshape(2, 25):lt(7) or nil
      weft.backward((model(pixels, { mask = mask }).last_hidden_state ^ 2):sum())
      for name, t in model:named_parameters() do
        assert.is_true(t.grad ~= nil and compare.finite(t.grad), name)
      end
    end)
  end)
end

describe("dinov2", function()
  local golden = compare.golden "dinov2_mlp/io.safetensors"

  it("puts the mask token where the mask says", function()
    local out = load("mlp")(golden["masked.pixel_values"], { mask = golden["masked.bool_masked_pos"] })
    compare.close(out.last_hidden_state, golden["masked.last_hidden_state"], 2e-5)
  end)

  it("names its outputs", function()
    local registers = compare.golden "dinov2_registers/io.safetensors"
    local out = load("registers")(registers["wide.pixel_values"])
    assert.same({ h = 4, w = 6 }, out.grid)
    assert.same({ 2, 4, 48 }, out.registers.shape)
    assert.same({ 2, 24, 48 }, out.patches.shape)
    assert.is_true(compare.same(out.patches, out.last_hidden_state:narrow(2, 6, 24)))
    assert.is_true(compare.same(out.cls, out.pooler_output))
    assert.is_nil(load("mlp")(golden["wide.pixel_values"]).registers)
  end)

  it("counts as published", function()
    local expected = { small = 22056576, base = 86580480, large = 304368640, giant = 1136480768,
      ["small-registers"] = 22058112, ["base-registers"] = 86583552, ["large-registers"] = 304372736,
      ["giant-registers"] = 1136486912 }
    for size, count in pairs(expected) do
      assert.equal(count, Module.on_meta(dinov2.new, size):count(), size)
    end
    local base = Module.on_meta(dinov2.new, { size = "base", use_mask_token = false })
    assert.equal(86579712, base:count())
    local n = 0
    for _ in Module.on_meta(dinov2.new, "base"):named_parameters() do n = n + 1 end
    assert.equal(223, n)
  end)

  it("takes positions by the rule of its kind", function()
    assert.equal("size", load("mlp").config.pos_interp)
    assert.equal("antialias", load("registers").config.pos_interp)
    local a, b = load("mlp"), load("mlp", { pos_interp = "offset" })
    local pixels = golden["wide.pixel_values"]
    local apart = compare.error(b(pixels).last_hidden_state, a(pixels).last_hidden_state)
    assert.is_true(apart > 1e-3)
    assert.is_true(compare.same(a(pixels, { pos_interp = "offset" }).last_hidden_state, b(pixels).last_hidden_state))
  end)

  it("resizes a frozen table once, and again after it was written", function()
    local model = load("mlp"):freeze()
    local pixels = golden["wide.pixel_values"]
    local function calls()
      local n = 0
      local C = require("weft.core").lib
      for i = 0, C.weft_n_ops() - 1 do
        if require("ffi").string(C.weft_op_field(i, "name")) == "interpolate" then n = tonumber(C.weft_op_calls(i)) end
      end
      return n
    end
    local before = calls()
    local first = weft.scope(function() return model(pixels).last_hidden_state end)
    local again = weft.scope(function() return model(pixels).last_hidden_state end)
    assert.equal(1, calls() - before)
    assert.is_true(compare.same(first, again))
    model.embeddings.position_embeddings:mul_(0.5)
    local other = model(pixels).last_hidden_state
    assert.equal(2, calls() - before)
    assert.is_false(compare.same(first, other))
  end)

  it("gives a picture the same features in any batch", function()
    -- products are cut by picture from 64 positions on
    local model = load "mlp"
    local pixels = weft.randn { 2, 3, 112, 126 }
    local both = model(pixels).last_hidden_state
    local one = model(pixels:narrow(1, 2, 1)).last_hidden_state
    assert.is_true(compare.same(both:narrow(1, 2, 1), one))
  end)

  it("reads the names of newer stacks and of the original project", function()
    local state = assert(require("weft.io.safetensors").load "tests/golden/dinov2_swiglu/model.safetensors")
    local newer, original = {}, {}
    local renames = { ["attention%.attention%.query"] = "attention.q_proj", ["attention%.attention%.key"] = "attention.k_proj",
      ["attention%.attention%.value"] = "attention.v_proj", ["attention%.output%.dense"] = "attention.o_proj",
      ["mlp%.weights_out"] = "mlp.down_proj" }
    local top = { ["embeddings.cls_token"] = "cls_token", ["embeddings.mask_token"] = "mask_token",
      ["embeddings.position_embeddings"] = "pos_embed", ["embeddings.patch_embeddings.projection.weight"] = "patch_embed.proj.weight",
      ["embeddings.patch_embeddings.projection.bias"] = "patch_embed.proj.bias",
      ["layernorm.weight"] = "norm.weight", ["layernorm.bias"] = "norm.bias" }
    for name, t in pairs(state) do
      local n = name
      for from, to in pairs(renames) do n = n:gsub(from, to) end
      local before, leaf = n:match "^(.*)%.weights_in%.(%a+)$"
      if before then
        local half = t:size(1) / 2
        newer["dinov2." .. before .. ".gate_proj." .. leaf] = t:narrow(1, 1, half)
        newer["dinov2." .. before .. ".up_proj." .. leaf] = t:narrow(1, half + 1, half)
      else
        newer["dinov2." .. n] = t
      end
      local o = name:gsub("^encoder%.layer", "blocks"):gsub("attention%.output%.dense", "attn.proj")
        :gsub("layer_scale(%d)%.lambda1", "ls%1.gamma")
        :gsub("mlp%.weights_in", "mlp.w12"):gsub("mlp%.weights_out", "mlp.w3")
      if not o:find "attention%.attention" then original[top[name] or o] = t end
    end
    for i = 0, 2 do
      for _, leaf in ipairs { "weight", "bias" } do
        local at = ("encoder.layer.%d.attention.attention.%%s.%s"):format(i, leaf)
        original[("blocks.%d.attn.qkv.%s"):format(i, leaf)] =
          weft.cat({ state[at:format "query"], state[at:format "key"], state[at:format "value"] }, 1)
      end
    end
    local pixels = golden["native.pixel_values"]
    local expected = load("swiglu")(pixels).last_hidden_state
    for what, other in pairs { newer = newer, original = original } do
      local model = dinov2.new(load("swiglu").config):eval()
      model:load(other)
      assert.is_true(compare.same(model(pixels).last_hidden_state, expected), what)
    end
  end)

  it("finds a model by name in the local cache, and says where it looked", function()
    local ffi = require "ffi"
    ffi.cdef "int setenv(const char *name, const char *value, int overwrite);"
    local home, old = os.tmpname(), os.getenv "HF_HOME"
    os.remove(home)
    local snapshot = home .. "/hub/models--someone--tiny/snapshots/abc123"
    os.execute(("mkdir -p %s %s/hub/models--someone--tiny/refs && cp tests/golden/dinov2_mlp/*.* %s/"):format(snapshot, home, snapshot))
    local f = assert(io.open(home .. "/hub/models--someone--tiny/refs/main", "w"))
    f:write "abc123"
    f:close()
    ffi.C.setenv("HF_HOME", home, 1)
    local model = dinov2.from_pretrained "someone/tiny"
    local ok, message = pcall(dinov2.from_pretrained, "someone/else")
    assert.equal(48, dinov2.from_pretrained("someone/tiny", { revision = "abc123" }).config.hidden_size)
    local _, other = pcall(dinov2.from_pretrained, "someone/tiny", { revision = "v2" })
    assert.matches("at the revision v2; this downloads it:\n  weft fetch someone/tiny %-%-revision v2", other)
    ffi.C.setenv("HF_HOME", old or "", 1)
    os.execute("rm -r " .. home)
    assert.equal(48, model.config.hidden_size)
    assert.is_false(ok)
    assert.matches("no directory someone/else, and it is not in .*models%-%-someone%-%-else; this downloads it:\n  weft fetch someone/else", message)
  end)

  it("says which tensors do not fit, and changes nothing", function()
    local state = assert(require("weft.io.safetensors").load "tests/golden/dinov2_mlp/model.safetensors")
    state["encoder.layer.1.norm1.weight"] = nil
    local model = load "mlp"
    local before = model.layernorm.weight:clone()
    local ok, message = pcall(model.load, model, state)
    assert.is_false(ok)
    assert.matches("missing encoder.layer.1.norm1.weight", message)
    assert.is_true(compare.same(before, model.layernorm.weight))
  end)

  it("refuses pictures whose sides are no multiples of the patch", function()
    local ok, message = pcall(load "mlp", weft.zeros { 1, 3, 70, 75 })
    assert.is_false(ok)
    assert.matches("70 x 75", message)
  end)

  it("drops paths in training alone", function()
    local model = load("mlp", { drop_path_rate = 0.5 })
    model:assign_paths()
    local pixels = golden["native.pixel_values"]
    local plain = load("mlp")(pixels).last_hidden_state
    assert.is_true(compare.same(model(pixels).last_hidden_state, plain))
    model:train()
    weft.manual_seed(3)
    assert.is_false(compare.same(model(pixels).last_hidden_state, plain))
  end)

  it("shows attention that sums to one", function()
    local weights = load("registers"):attention(golden["native.pixel_values"], { layer = 2 })
    assert.same({ 2, 3, 30, 30 }, weights.shape)
    compare.close(weights:sum(-1), weft.ones { 2, 3, 30 }, 1e-5)
  end)
end)
