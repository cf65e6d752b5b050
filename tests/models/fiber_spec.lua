-- fiber_spec.lua: fusion adds nothing while its gates are 0, leaks no text, and reads states from
-- before the step.
local weft = require "weft"
local compare = require "tests.models.compare"
local models = weft.models
local Module = require("weft.nn.module").base

local function make(options)
  local language = models.llama { vocab = 30, width = 16, layers = 4, heads = 2, ff = 24, init_std = 0.3 }:initialize(3)
  local o = { image_width = 8, image_heads = 2, image_hidden = 16 }
  for k, v in pairs(options or {}) do o[k] = v end
  return models.fiber(language, o):initialize(4), language
end

local function open_gates(fiber)
  weft.no_grad(function()
    for name, t in fiber:named_parameters() do
      if name:find "gate$" then t:fill_(0.7) end
    end
  end)
  return fiber
end

local ids = weft.randint { 3, 6, low = 1, high = 30 }
local mask = weft.tensor({ { 1, 1, 1, 1, 1, 1 }, { 1, 1, 1, 1, 0, 0 }, { 1, 1, 1, 0, 0, 0 } }, { dtype = "bool" })
local V = weft.randn { 3, 5, 8 }
local z = weft.randn { 3, 8 }

describe("fiber", function()
  it("counts as published", function()
    local fiber = Module.on_meta(function()
      return models.fiber(models.llama { vocab = 32768, width = 384, layers = 7, ff = 1024 }, { image_width = 128 })
    end)
    assert.same({ 4, 5, 6, 7 }, fiber.fused)
    assert.equal(393601, fiber.text[1]:count())
    assert.equal(131201, fiber.image[1].from_text:count())
    local total = fiber:count()
    assert.is_true(total > 2e6 and total < 5e6)
  end)

  it("leaves the language model to itself", function()
    local fiber, language = make()
    for name in fiber:named_parameters() do assert.is_nil(name:find "language") end
    assert.is_true(fiber.language == language)
  end)

  it("gives bit for bit the single streams while gates are 0", function()
    local fiber, language = make()
    local alone = language:encode(ids, { mask = mask })
    local fused = fiber:fuse(V, ids, { mask = mask })
    assert.is_true(compare.same(fused.text, alone))
    local stream = fiber:streams(V)
    assert.is_true(compare.same(fused.image, fiber.image[2](stream[2])))
    assert.is_true(compare.same(fiber:caption_states(V, z, ids, { mask = mask }), alone))
  end)

  it("fuses once gates are open", function()
    local fiber, language = make()
    open_gates(fiber)
    local fused = fiber:fuse(V, ids, { mask = mask })
    assert.is_true(compare.error(fused.text, language:encode(ids, { mask = mask })) > 1e-2)
    assert.is_true(compare.error(fused.image, fiber.image[2](fiber:streams(V)[2])) > 1e-2)
    assert.same({ 3, 16 + 8 }, fused.feature.shape)
    assert.is_true(compare.same(fused.feature:narrow(2, 1, 16)[2], fused.text[2][4]))
    compare.close(fused.feature:narrow(2, 17, 8), fused.image:mean(2), 1e-6)
  end)

  it("reads the other side from before the step, both ways", function()
    local fiber, language = make { layers = { 4 } }
    open_gates(fiber)
    local entry
    language:encode(ids, { cross = function(layer, after, before)
      if layer == 4 then entry = before end
      return after
    end })
    local fused = fiber:fuse(V, ids)
    -- the image block reads the state that entered layer 4
    assert.is_true(compare.same(fused.image, fiber.image[1](V, entry)))
    -- and the text reads V as it came: as in the caption pass, where the stream has not moved yet
    assert.is_true(compare.same(fused.text, fiber:caption_states(V, nil, ids)))
  end)

  it("lets no later token move an earlier logit of a caption", function()
    local fiber, language = make()
    open_gates(fiber)
    local changed = ids:clone()
    changed[1][5] = (ids[1][5]:item() + 1) % 29 + 1
    local a = language:logits(fiber:caption_states(V, z, ids))
    local b = language:logits(fiber:caption_states(V, z, changed))
    assert.is_true(compare.same(a:narrow(2, 1, 4), b:narrow(2, 1, 4)))
    assert.is_true(compare.error(a[1][5], b[1][5]) > 1e-4)
    -- the fused pass does look ahead, through the image stream: it must not serve captions
    local c, d = fiber:fuse(V, ids).text, fiber:fuse(V, changed).text
    assert.is_true(compare.error(c[1]:narrow(1, 1, 4), d[1]:narrow(1, 1, 4)) > 1e-6)
  end)

  it("takes no notice of padding on the right", function()
    local fiber = open_gates(make())
    local other = weft.where(mask, ids, weft.full { 3, 6, value = 17, dtype = "int64" })
    local wide = weft.cat({ other, weft.full { 3, 2, value = 5, dtype = "int64" } }, 2)
    local wide_mask = weft.cat({ mask, weft.zeros { 3, 2, dtype = "bool" } }, 2)
    local a, b = fiber:fuse(V, ids, { mask = mask }), fiber:fuse(V, wide, { mask = wide_mask })
    compare.close(b.feature, a.feature, 1e-5)
    local x = fiber:caption(V, z, ids, { mask = mask })
    local y = fiber:caption(V, z, wide, { mask = wide_mask })
    compare.close(y, x, 1e-6)
    assert.is_true(math.abs(x:item() - fiber:caption(V, z, ids):item()) > 1e-3)
  end)

  it("reaches every parameter with a finite gradient once gates are open", function()
    local fiber, language = make()
    open_gates(fiber)
    local loss = (fiber:fuse(V, ids, { mask = mask }).feature ^ 2):sum() + fiber:caption(V, z, ids, { mask = mask })
    loss:backward()
    for _, module in ipairs { fiber, language } do
      for name, t in module:named_parameters() do
        assert.is_true(t.grad ~= nil and compare.finite(t.grad) and t.grad:abs():sum():item() > 0, name)
      end
    end
  end)

  it("moves gates first: behind a closed gate gradients are exactly 0", function()
    local fiber = make()
    fiber:caption(V, z, ids):backward()
    assert.equal(0, fiber.text[1].o_proj.weight.grad:abs():sum():item())
    assert.is_true(math.abs(fiber.text[1].gate.grad:item()) > 0)
  end)

  it("looks at the memory's vector", function()
    local fiber = open_gates(make { memory_width = 6 })
    local memory = weft.randn { 3, 6 }
    local with = fiber:caption_states(V, memory, ids)
    assert.is_true(compare.error(with, fiber:caption_states(V, nil, ids)) > 1e-4)
    local other = memory:clone()
    other[1]:mul_(-1)
    local moved = fiber:caption_states(V, other, ids)
    assert.is_true(compare.error(moved[1], with[1]) > 1e-4)
    assert.is_true(compare.same(moved[2], with[2]))
  end)

  it("generates with a cache what it would without", function()
    local fiber, language = make()
    open_gates(fiber)
    local out = fiber:generate(V, z, { bos = 1, max_new_tokens = 7 })
    assert.same({ 3, 8 }, out.ids.shape)
    local logits = language:logits(fiber:caption_states(V, z, out.ids))
    assert.same(logits:argmax(-1):narrow(2, 1, 7):totable(), out.ids:narrow(2, 2, 7):totable())
  end)

  it("generates for each picture what it generates for it alone, with beams", function()
    local fiber = open_gates(make())
    local o = { bos = 1, max_new_tokens = 6, beams = 3, eos = 2 }
    local all = fiber:generate(V, z, o)
    for i = 1, 3 do
      local one = fiber:generate(V:narrow(1, i, 1), z:narrow(1, i, 1), o)
      assert.equal(all.lengths[i], one.lengths[1])
      for k = 1, one.lengths[1] do assert.equal(all.ids[i][k]:item(), one.ids[1][k]:item()) end
      assert.is_true(math.abs(all.scores[i] - one.scores[1]) < 1e-4)
    end
  end)

  it("refuses layers that are not there, and another width", function()
    assert.is_false(pcall(make, { layers = { 5 } }))
    assert.is_false(pcall(make, { layers = "top" }))
    local ok, message = pcall(function() return (make()):fuse(weft.randn { 3, 5, 9 }, ids) end)
    assert.is_false(ok)
    assert.matches("%[B, P, 8%]", message)
  end)
end)
