-- itm_spec.lua: matching: hard negatives by similarity, never the own picture, and a head that learns.
local weft = require "weft"
local compare = require "tests.models.compare"
local ITC, ITM = require "weft.losses.itc", require "weft.losses.itm"
local Queue = require "weft.losses.queue"

local golden = compare.golden "contrastive.safetensors"

local B, N, W, L = 4, 3, 2, 5
local function batch_of(ids, captions)
  local b = { image_ids = ids, caption_ids = captions or ids }
  b.ids = weft.tensor(ids, { dtype = "int64" }):unsqueeze(2):expand(#ids, L):contiguous()
  b.mask = weft.ones { #ids, L, dtype = "bool" }
  return b
end
-- pictures and texts that carry their id, so that a pair can be told
local function stream(ids) return (weft.tensor(ids):reshape(#ids, 1, 1):expand(#ids, N, W):contiguous()) end
local function full_queue(size)
  return Queue(size, { image = { 4 }, text = { 4 }, ids = { dtype = "int64" }, captions = { dtype = "int64" },
    tokens = { L, dtype = "int64" }, mask = { L, dtype = "bool" }, patches = { N, W, dtype = "bfloat16" } })
end
local function pair_of(batch, queue, itc)
  itc = itc or ITC { image = 6, text = 6, dim = 4, tau = 0.2 }
  local n = #batch.image_ids
  return itc(weft.randn { n, 6 }, weft.randn { n, 6 }, batch, queue)
end
local function push(queue, pair, batch, V)
  queue:push { image = pair.keys.image, text = pair.keys.text, ids = pair.keys.ids, captions = pair.keys.captions,
    tokens = batch.ids, mask = batch.mask, patches = V }
  queue:commit()
end

describe("ITM", function()
  it("weighs candidates as the golden", function()
    local sim = weft.matmul(golden.img_m, golden.txt_m:t()) / golden.tau:item()
    local same = golden.ids:unsqueeze(2):eq(golden.ids:unsqueeze(1))
    compare.close(ITM.weights(sim, same, 1e-4), golden.itm_weights, 1e-12)
  end)

  it("lays out pairs, pictures with other texts, and texts with other pictures", function()
    local batch = batch_of { 1, 2, 3, 4 }
    local V, itm, seen = stream(batch.image_ids), ITM { width = 2, source = "batch" }
    local loss = itm(function(v, ids, mask)
      seen = { v = v:select(3, 1):select(2, 1):totable(), ids = ids:select(2, 1):totable(), mask = mask }
      return weft.ones { 3 * B, 2 }
    end, V, pair_of(batch), batch)
    assert.same({ 3 * B, L }, seen.mask.shape)
    for i = 1, B do
      assert.equal(i, seen.v[i])
      assert.equal(i, seen.ids[i])
      assert.equal(i, seen.v[B + i])
      assert.is_true(seen.ids[B + i] ~= i)
      assert.equal(i, seen.ids[2 * B + i])
      assert.is_true(seen.v[2 * B + i] ~= i)
    end
    assert.is_true(loss:item() > 0)
    assert.is_true(math.abs(itm.majority - 2 / 3) < 1e-12)
  end)

  it("never draws the own picture or an equal caption, from batch or queue", function()
    weft.manual_seed(4)
    local queue = full_queue(6)
    local first = batch_of({ 1, 2, 5, 6 }, { 11, 2, 5, 6 })
    local V = stream(first.image_ids)
    push(queue, pair_of(first), first, V)
    -- picture 1 again; caption 2 again under another picture
    local batch = batch_of({ 1, 9, 3, 4 }, { 12, 2, 3, 4 })
    local forbidden = { [1] = { [1] = true }, [9] = { [9] = true, [2] = true }, [3] = { [3] = true }, [4] = { [4] = true } }
    local from_queue = 0
    for _ = 1, 300 do
      weft.scope(function()
        local itm = ITM { width = 2 }
        itm(function(v, ids)
          local pictures, texts = v:select(3, 1):select(2, 1):totable(), ids:select(2, 1):totable()
          for i = 1, B do
            local own = batch.image_ids[i]
            assert.is_nil(forbidden[own][texts[B + i]])
            assert.is_nil(forbidden[own][pictures[2 * B + i]])
            if texts[B + i] == 5 or texts[B + i] == 6 then from_queue = from_queue + 1 end
          end
          return weft.ones { 3 * B, 2 }
        end, stream(batch.image_ids), pair_of(batch, queue), batch, queue)
      end)
    end
    assert.is_true(from_queue > 50)
  end)

  it("never draws the own id in a million draws, however much more alike it looks", function()
    weft.manual_seed(8)
    local n, queue = 50, full_queue(30)
    local ids = {}
    for i = 1, 30 do ids[i] = i end
    local first = batch_of(ids)
    push(queue, pair_of(first), first, stream(ids))
    -- 10 pictures of the batch stand in the queue as well, 6 twice in the batch
    for i = 1, n do ids[i] = i <= 44 and i + 20 or i - 24 end
    local batch = batch_of(ids)
    -- every picture's own text is its exact copy: at the least temperature its softmax is 1, all others' 0
    local itc = ITC { image = 6, text = 6, dim = 4, tau = 0.001 }
    local x = weft.randn { n, 6 }
    weft.no_grad(function()
      for _, part in ipairs { "weight", "bias" } do itc.text_proj[part]:copy_(itc.image_proj[part]) end
    end)
    local pair = itc(x, x, batch, queue)
    local weights = ITM.weights(pair.sim_i2t, pair.positive, 1e-4)
    local drawn, names = weft.multinomial(weights, 20000, true):totable(), {}
    for i = 1, n do names[i] = ids[i] end
    for i = 1, 30 do names[n + i] = i end
    local count = 0
    for i, row in ipairs(drawn) do
      for _, column in ipairs(row) do
        if names[column + 1] == ids[i] then error(("row %d drew column %d, its own"):format(i, column)) end
        count = count + 1
      end
    end
    assert.equal(1000000, count)
    -- and so it is where the loss draws
    local itm = ITM { width = 2 }
    for _ = 1, 100 do
      weft.scope(function()
        itm(function(v, texts)
          local pictures, words = v:select(3, 1):select(2, 1):totable(), texts:select(2, 1):totable()
          for i = 1, n do assert.is_true(words[n + i] ~= ids[i] and pictures[2 * n + i] ~= ids[i]) end
          return weft.ones { 3 * n, 2 }
        end, stream(ids), pair, batch, queue)
      end)
    end
    assert.equal(0, itm.skipped_rows)
  end)

  it("draws by how alike things look", function()
    weft.manual_seed(9)
    local batch = batch_of { 1, 2, 3 }
    local pair = pair_of(batch)
    pair.sim_i2t = weft.tensor { { 9, 5, 0 }, { 0, 9, 0 }, { 0, 0, 9 } }
    local count = { 0, 0, 0 }
    for _ = 1, 200 do
      weft.scope(function()
        ITM { width = 2, source = "batch" }(function(_, ids)
          local id = ids[4][1]:item()
          count[id] = count[id] + 1
          return weft.ones { 9, 2 }
        end, stream(batch.image_ids), pair, batch)
      end)
    end
    assert.equal(0, count[1])
    assert.is_true(count[2] > 150)
  end)

  it("skips rows that have no negative, and all of it where none has", function()
    local batch = batch_of { 1 }
    local itm = ITM { width = 2 }
    local called = false
    assert.is_nil(itm(function() called = true end, stream { 1 }, pair_of(batch), batch))
    assert.is_false(called)
    assert.equal(2, itm.skipped_rows)
    local same = batch_of { 7, 7, 8 }
    local loss = itm(function() return weft.ones { 9, 2 } end, stream { 7, 7, 8 }, pair_of(same), same)
    assert.equal(2, itm.skipped_rows)
    assert.is_true(loss ~= nil)
    -- captions of 1 and 2 are alike, and of 3 too: nothing is left for any
    local alike = batch_of({ 1, 2, 3 }, { 5, 5, 5 })
    assert.is_nil(itm(function() return weft.ones { 9, 2 } end, stream { 1, 2, 3 }, pair_of(alike), alike))
    assert.equal(8, itm.skipped_rows)
    itm:eval()
    itm(function() return weft.ones { 9, 2 } end, stream { 1, 2, 3 }, pair_of(alike), alike)
    assert.equal(8, itm.skipped_rows)
  end)

  it("leaves what could not be drawn out of the loss", function()
    -- the second is of the first's picture and has the third's caption
    local batch = batch_of({ 1, 1, 2 }, { 10, 20, 20 })
    local itm = ITM { width = 2, source = "batch" }
    weft.no_grad(function()
      itm.head.weight:fill_(0)
      itm.head.bias:copy_(weft.tensor { math.log(.9), math.log(.1) })
    end)
    local loss = itm(function() return weft.ones { 9, 2 } end, stream { 1, 1, 2 }, pair_of(batch), batch)
    assert.equal(2, itm.skipped_rows)
    assert.is_true(math.abs(loss:item() - (-3 * math.log(.1) - 4 * math.log(.9)) / 7) < 1e-5)
    assert.is_true(math.abs(itm.accuracy - 4 / 7) < 1e-12 and math.abs(itm.majority - 4 / 7) < 1e-12)
  end)

  it("skips what is NaN", function()
    local batch = batch_of { 1, 2, 3 }
    local pair = pair_of(batch)
    pair.sim_i2t = weft.full { 3, 3, value = 0 / 0 }
    local itm = ITM { width = 2, source = "batch" }
    local loss = itm(function() return weft.ones { 9, 2 } end, stream { 1, 2, 3 }, pair, batch)
    assert.equal(3, itm.skipped_rows)
    assert.is_true(compare.finite(loss))
  end)

  it("trains through the picture, also where it is another's negative", function()
    local batch = batch_of { 1, 2, 3, 4 }
    local V = stream(batch.image_ids):requires_grad_()
    local itm = ITM { width = W, source = "batch" }
    local loss = itm(function(v, ids) return v:mean(2) * ids:to("float32"):mean(2):unsqueeze(2) end, V, pair_of(batch), batch)
    loss:backward()
    assert.is_true(compare.finite(V.grad) and V.grad:abs():sum():item() > 0)
    for _, t in itm:named_parameters() do assert.is_true(compare.finite(t.grad)) end
  end)

  it("begins at the entropy of one pair to two others when it looks at nothing", function()
    local itm = ITM { width = 2, source = "batch" }
    weft.no_grad(function()
      itm.head.weight:fill_(0)
      itm.head.bias:copy_(weft.tensor { math.log(2 / 3), math.log(1 / 3) })
    end)
    local batch = batch_of { 1, 2, 3, 4 }
    local loss = itm(function() return weft.ones { 12, 2 } end, stream(batch.image_ids), pair_of(batch), batch)
    assert.is_true(math.abs(loss:item() - 0.6365) < 1e-4)
    assert.is_true(math.abs(itm.accuracy - itm.majority) < 1e-9)
  end)

  it("learns to tell pairs with a fused head", function()
    weft.manual_seed(2)
    local batch = batch_of { 1, 2, 3, 4 }
    local V, itm = stream(batch.image_ids), ITM({ width = 2, source = "batch" }):initialize(2)
    local pair = pair_of(batch)
    local function fuse(v, ids)
      local apart = (v:select(3, 1):select(2, 1) - ids:select(2, 1):to "float32"):abs()
      return weft.stack({ apart, weft.exp(apart * -1) }, 2)
    end
    for _ = 1, 150 do
      weft.scope(function()
        itm:zero_grad()
        itm(fuse, V, pair, batch):backward()
        weft.no_grad(function()
          for _, t in itm:named_parameters() do t:sub_(t.grad) end
        end)
      end)
    end
    assert.equal(1, itm.accuracy)
  end)
end)
