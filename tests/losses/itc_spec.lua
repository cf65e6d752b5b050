-- itc_spec.lua: the contrastive loss: golden values, who is a positive, who is left out, and what
-- cannot be compared.
local weft = require "weft"
local compare = require "tests.models.compare"
local ITC = require "weft.losses.itc"
local Queue = require "weft.losses.queue"

local golden = compare.golden "contrastive.safetensors"

local function features(requires)
  local filled = 7
  local f = { image = golden.img:clone(), text = golden.txt:clone(), tau = golden.tau:clone(),
    image_keys = golden.img_m, text_keys = golden.txt_m, ids = golden.ids,
    queue_image = golden.queue_img:narrow(1, 1, filled), queue_text = golden.queue_txt:narrow(1, 1, filled),
    queue_ids = golden.queue_ids:narrow(1, 1, filled) }
  if requires then
    for _, name in ipairs { "image", "text", "tau" } do f[name]:requires_grad_() end
  end
  return f
end

local function head(options)
  local o = { image = 6, text = 5, dim = 4 }
  for k, v in pairs(options or {}) do o[k] = v end
  weft.manual_seed(1)
  return ITC(o):initialize(3)
end
local function queue_of(size)
  return Queue(size, { image = { 4 }, text = { 4 }, ids = { dtype = "int64" }, captions = { dtype = "int64" } })
end
local function push(queue, pair)
  queue:push(pair.keys)
  queue:commit()
end

describe("ITC", function()
  it("gives the golden targets, losses and gradients", function()
    local f = features(true)
    local pair = ITC.pair_loss(f, 0.4)
    compare.close(pair.target_i2t, golden.targets_i2t:narrow(2, 1, 13), 1e-12, "targets")
    assert.equal(0, golden.targets_i2t:narrow(2, 14, 3):sum():item())
    compare.close(pair.i2t, golden.loss_i2t, 1e-12, "image to text")
    compare.close(pair.t2i, golden.loss_t2i, 1e-12, "text to image")
    compare.close(pair.loss, golden.loss, 1e-12, "loss")
    pair.loss:backward()
    compare.close(f.image.grad, golden.grad_img, 1e-10, "image")
    compare.close(f.text.grad, golden.grad_txt, 1e-10, "text")
    compare.close(f.tau.grad, golden.grad_tau, 1e-10, "tau")
  end)

  it("has right gradients for every part", function()
    local f = features(true)
    assert.is_true(weft.gradcheck(function() return ITC.pair_loss(f, 0).loss end, { f.image, f.text, f.tau }))
  end)

  it("is close to the log of the columns before anything is learned", function()
    local itc = head { image = 32, text = 32, dim = 16, tau = 0.5 }
    local ids = {}
    for i = 1, 64 do ids[i] = i end
    local pair = itc(weft.randn { 64, 32 }, weft.randn { 64, 32 }, { image_ids = ids, caption_ids = ids })
    assert.is_true(math.abs(pair.loss:item() - itc.counts.prior) < 0.4)
    assert.is_true(math.abs(itc.counts.prior - math.log(64)) < 1e-12)
  end)

  it("takes the same picture as a positive and leaves the same caption out", function()
    local itc, queue = head(), queue_of(8)
    local batch = { image_ids = { 1, 2 }, caption_ids = { 10, 20 } }
    push(queue, itc(weft.randn { 2, 6 }, weft.randn { 2, 5 }, batch, queue))
    -- picture 1 again with another caption; caption 20 again with another picture
    local pair = itc(weft.randn { 3, 6 }, weft.randn { 3, 5 }, { image_ids = { 1, 3, 4 }, caption_ids = { 11, 20, 40 } }, queue)
    assert.same({ { true, false, false, true, false }, { false, true, false, false, false }, { false, false, true, false, false } },
      (function()
        local rows = pair.positive:totable()
        for _, r in ipairs(rows) do
          for i, v in ipairs(r) do r[i] = v == 1 or v == true end
        end
        return rows
      end)())
    assert.same({ negatives = 3 * 5 - 3 - 1 - 1, same_picture = 1, same_caption = 1, rows = 3, prior = math.log(5) }, itc.counts)
    compare.close(pair.target_i2t[1], weft.tensor { 0.5, 0, 0, 0.5, 0 }, 1e-6)
    assert.equal(-math.huge, pair.sim_i2t[2][5]:item())
  end)

  it("compares pictures with the queue's texts, and texts with its pictures", function()
    local itc, queue = head { tau = 0.2 }, queue_of(3)
    local rows = { image = weft.randn { 3, 4 }, text = weft.randn { 3, 4 } }
    queue:push { image = rows.image, text = rows.text, ids = weft.tensor({ 7, 8, 9 }, { dtype = "int64" }),
      captions = weft.tensor({ 7, 8, 9 }, { dtype = "int64" }) }
    queue:commit()
    local pair = itc(weft.randn { 2, 6 }, weft.randn { 2, 5 }, { image_ids = { 1, 2 }, caption_ids = { 1, 2 } }, queue)
    compare.close(pair.sim_i2t:narrow(2, 3, 3), pair.keys.image:matmul(rows.text:t()) / 0.2, 1e-5)
    compare.close(pair.sim_t2i:narrow(2, 3, 3), pair.keys.text:matmul(rows.image:t()) / 0.2, 1e-5)
  end)

  it("changes nothing for what is left out", function()
    local itc = head()
    local image, text = weft.randn { 2, 6 }, weft.randn { 2, 5 }
    local batch = { image_ids = { 1, 2 }, caption_ids = { 10, 20 } }
    local function loss_with(stray)
      local queue = queue_of(4)
      queue:push { image = stray, text = stray, ids = weft.tensor({ 9 }, { dtype = "int64" }),
        captions = weft.tensor({ 20 }, { dtype = "int64" }) }
      queue:commit()
      return itc(image, text, batch, queue)
    end
    local a, b = loss_with(weft.tensor { { 1, 0, 0, 0 } }), loss_with(weft.tensor { { 0, 0, 1, 0 } })
    -- row 2 shares its caption with the stray; row 1 sees it as a negative
    assert.is_true(compare.same(a.target_i2t, b.target_i2t))
    assert.equal(a.sim_i2t[2][3]:item(), b.sim_i2t[2][3]:item())
    assert.is_true(math.abs(a.loss:item() - b.loss:item()) > 1e-6)
  end)

  it("never sees a slot that was not filled", function()
    local itc, queue = head(), queue_of(100)
    local batch = { image_ids = { 1, 2 }, caption_ids = { 1, 2 } }
    local image, text = weft.randn { 2, 6 }, weft.randn { 2, 5 }
    local empty, without = itc(image, text, batch, queue), itc(image, text, batch)
    assert.is_true(compare.same(empty.loss, without.loss))
    assert.same({ 2, 2 }, empty.sim_i2t.shape)
  end)

  it("skips and counts what cannot be compared", function()
    local itc = head()
    local one = itc(weft.randn { 1, 6 }, weft.randn { 1, 5 }, { image_ids = { 1 }, caption_ids = { 1 } })
    assert.is_nil(one.loss)
    assert.equal(1, itc.skipped)
    local same = itc(weft.randn { 3, 6 }, weft.randn { 3, 5 }, { image_ids = { 7, 7, 7 }, caption_ids = { 1, 2, 3 } })
    assert.is_nil(same.loss)
    assert.equal(4, itc.skipped)
    local image = weft.randn { 2, 6 }
    image[1]:fill_(0 / 0)
    local nan = itc(image, weft.randn { 2, 5 }, { image_ids = { 1, 2 }, caption_ids = { 1, 2 } })
    assert.is_nil(nan.loss)
    assert.equal(6, itc.skipped)
    itc:eval()
    itc(weft.randn { 1, 6 }, weft.randn { 1, 5 }, { image_ids = { 1 }, caption_ids = { 1 } })
    assert.equal(6, itc.skipped)
  end)

  it("leaves out the row that has no negative, and keeps the others", function()
    -- row 2 is of row 1's picture and has row 3's caption
    local ids = weft.tensor({ 1, 1, 2 }, { dtype = "int64" })
    local captions = weft.tensor({ 10, 20, 20 }, { dtype = "int64" })
    local function part(t, n) return t:narrow(1, 1, n):clone():requires_grad_() end
    local f = { image = part(golden.img, 3), text = part(golden.txt, 3), image_keys = golden.img_m:narrow(1, 1, 3),
      text_keys = golden.txt_m:narrow(1, 1, 3), ids = ids, captions = captions, tau = golden.tau }
    local pair = ITC.pair_loss(f, 0)
    assert.equal(2, pair.rows)
    pair.loss:backward()
    assert.equal(0, f.image.grad[2]:abs():sum():item())
    assert.is_true(f.image.grad[1]:abs():sum():item() > 0 and compare.finite(f.image.grad))
  end)

  it("keeps tau in its range and trains it", function()
    local itc = head { tau = 0.9 }
    local pair = itc(weft.randn { 3, 6 }, weft.randn { 3, 5 }, { image_ids = { 1, 2, 3 }, caption_ids = { 1, 2, 3 } })
    assert.is_true(math.abs(itc.tau:item() - 0.5) < 1e-6)
    pair.loss:backward()
    for name, t in itc:named_parameters() do assert.is_true(compare.finite(t.grad) and t.grad:abs():sum():item() > 0, name) end
  end)

  it("passes no gradient to keys", function()
    local itc = head()
    local keys = { image = weft.randn { 3, 4, requires_grad = true }, text = weft.randn { 3, 4, requires_grad = true } }
    local pair = itc(weft.randn { 3, 6 }, weft.randn { 3, 5 }, { image_ids = { 1, 2, 3 }, caption_ids = { 1, 2, 3 } }, nil, keys)
    pair.loss:backward()
    assert.is_nil(keys.image.grad)
    local own = itc(weft.randn { 3, 6 }, weft.randn { 3, 5 }, { image_ids = { 1, 2, 3 }, caption_ids = { 1, 2, 3 } })
    assert.is_false(own.keys.image.requires_grad or own.keys.text.requires_grad or own.sim_i2t.requires_grad)
    assert.is_true(compare.same(pair.keys.image, keys.image))
  end)
end)
