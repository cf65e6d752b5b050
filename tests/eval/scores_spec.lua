local weft = require "weft"
local retrieval = require "weft.eval.retrieval"
local itm = require "weft.eval.itm"
local captions = require "weft.eval.captions"

local function near(expected, got) assert.is_true(math.abs(expected - got) < 1e-12, ("%.15g is not %.15g"):format(got, expected)) end

describe("recall", function()
  it("counts a query right when a right candidate is among the first k, ties against it", function()
    local sim = {
      { 0.9, 0.1, 0.2, 0.3 },   -- right is 1: first
      { 0.5, 0.4, 0.3, 0.2 },   -- right is 2: second
      { 0.7, 0.6, 0.6, 0.1 },   -- right is 3: one above, one equal: third
      { 0.8, 0.8, 0.8, 0.8 },   -- right is 4: three equal: fourth
    }
    local right = {}
    for i = 1, 4 do
      right[i] = {}
      for j = 1, 4 do right[i][j] = i == j end
    end
    local recall, chance, ties = retrieval.recall(sim, right, { 1, 2, 3, 4 })
    near(1 / 4, recall[1])
    near(2 / 4, recall[2])
    near(3 / 4, recall[3])
    near(1, recall[4])
    assert.equal(4, ties)
    for k = 1, 4 do near(k / 4, chance[k]) end
  end)

  it("takes the best of several right candidates", function()
    local recall, chance = retrieval.recall({ { 0.1, 0.9, 0.5 } }, { { true, false, true } }, { 1, 2 })
    assert.equal(0, recall[1])
    assert.equal(1, recall[2])
    near(2 / 3, chance[1])
    near(1, chance[2])
  end)

  it("never rewards a similarity that is not a number", function()
    local nan = 0 / 0
    local recall = retrieval.recall({ { nan, 0.1 }, { 0.1, nan } }, { { true, false }, { true, false } }, { 1 })
    near(0, recall[1])
  end)

  it("has for chance the draw of k from N without putting back", function()
    -- 10 candidates, 3 right, 2 drawn: 1 - 7/10 * 6/9
    near(1 - 42 / 90, retrieval.chance(10, 3, 2))
    near(1, retrieval.chance(10, 3, 8))
    near(0.1, retrieval.chance(10, 1, 1))
    near(0, retrieval.chance(10, 0, 5))
  end)
end)

-- A run of n held-out pictures whose model embeds row i at angle[i] (pictures) and angle_of_text[i].
local function fake(options)
  local rows = {}
  for i = 1, options.n do
    rows[i] = { name = tostring(i), path = tostring(i), caption = "caption " .. i, image_id = (options.images or {})[i] or i,
      caption_id = (options.captions or {})[i] or i }
  end
  local dataset = { rows = rows }
  function dataset:size() return #rows end
  function dataset:batch_of(indices)
    local ids = weft.tensor(indices, { dtype = "int64" })
    return { indices = indices, ids = ids, mask = ids, tokens = #indices * (options.tokens or 1) }
  end
  local model = {}
  local function at(list)
    local out = {}
    for k, i in ipairs(list) do out[k] = options.place(i) end
    return weft.tensor(out)
  end
  function model:embed(batch)
    local texts = {}
    for k, i in ipairs(batch.indices) do texts[k] = options.text and options.text(i) or options.place(i) end
    return at(batch.indices), weft.tensor(texts)
  end
  function model:match(own, ids)
    local out = {}
    for k, j in ipairs(ids:totable()) do out[k] = options.match(own.indices[k], j) end
    return weft.tensor(out)
  end
  function model:caption_loss(batch) return weft.tensor(options.loss(batch.indices)) end
  function model:caption(batch)
    local out = {}
    for k, i in ipairs(batch.indices) do out[k] = "said " .. i end
    return out
  end
  return { data = { test = dataset }, model = model, options = { batch = 3, seed = 5 } }
end

local function direction(i)
  local out = {}
  for k = 1, 8 do out[k] = k == i and 1 or 0.01 * ((i * k) % 7) end
  return out
end

describe("retrieval on held-out pictures", function()
  it("is 1 for a perfect model, over batches that do not divide the set", function()
    local r = retrieval.run(fake { n = 8, place = direction }).retrieval
    assert.equal(8, r.pictures)
    for _, key in ipairs { "tr1", "tr5", "tr10", "ir1", "ir5", "ir10", "r_mean", "r10_mean" } do near(1, r[key]) end
    near(1 / 8, r.chance1)
    near(5 / 8, r.chance5)
    near(1, r.chance10)
    assert.equal(0, r.ties)
  end)

  it("counts a picture's other captions and a caption's other pictures as right", function()
    -- 1 and 2 share a caption, 3 and 4 a picture; texts of 1 and 2 are exchanged
    local function swapped(i) return direction(({ 2, 1, 3, 3, 5, 6, 7, 8 })[i]) end
    local function place(i) return direction(i == 4 and 3 or i) end
    local plain = retrieval.run(fake { n = 8, place = place, text = swapped }).retrieval
    near(0.5, plain.tr1)   -- 3 and 4 tie
    near(0.5, plain.ir1)
    local r = retrieval.run(fake { n = 8, place = place, text = swapped, captions = { 1, 1 }, images = { 1, 2, 3, 3 } }).retrieval
    near(1, r.tr1)
    near(1, r.ir1)
    -- three of 7 pictures have two right captions of 8, two captions have two right pictures
    near((3 * 2 / 8 + 4 * 1 / 8) / 7, r.chance1)
    near((2 * 2 / 7 + 6 * 1 / 7) / 8, r.ir_chance1)
  end)

  it("has each picture once, however many captions it has", function()
    -- 3 pictures of 2 captions each; the second picture looks like nothing of its own
    local r = retrieval.run(fake { n = 6, images = { 1, 1, 2, 2, 3, 3 }, place = function(i)
      return direction(({ 1, 1, 1, 1, 3, 3 })[i])
    end, text = function(i) return direction(({ 1, 1, 2, 2, 3, 3 })[i]) end }).retrieval
    assert.equal(3, r.pictures)
    assert.equal(6, r.texts)
    near(2 / 3, r.tr1)
    -- two pictures look the same: each counts against the other
    near(2 / 6, r.ir1)
    near(1, r.ir5)
    near(2 / 6, r.chance1)
    near(1 / 3, r.ir_chance1)
    near(1 - (4 * 3 * 2 * 1 * 0) / 720, r.chance5)
  end)

  it("is 0 where everything looks the same", function()
    local r = retrieval.run(fake { n = 8, place = function() return { 1, 0 } end }).retrieval
    near(0, r.r_mean - (r.tr10 + r.ir10) / 6)
    assert.equal(2 * 8 * 7, r.ties)
  end)
end)

describe("recall in two stages", function()
  local rerank = require "weft.eval.rerank"
  -- features take each for the next one; who is asked knows better
  local function next_one(i) return direction(i % 8 + 1) end
  local function run_of(match) return fake { n = 8, place = direction, text = next_one, match = match } end

  it("lets matching put the first candidates in order", function()
    near(0, retrieval.run(run_of()).retrieval.tr1)
    local r = rerank.run(run_of(function(i, j) return i == j and 3 or -3 end), 8).reranked
    for _, key in ipairs { "tr1", "ir1", "r_mean" } do near(1, r[key]) end
    assert.equal(8, r.top)
    near(1 / 8, r.chance1)
  end)

  it("asks of the first candidates alone, and leaves the others where they are, behind", function()
    local asked = 0
    local r = rerank.run(run_of(function(i, j)
      asked = asked + 1
      return i == j and 3 or -3
    end), 1).reranked
    assert.equal(2 * 8, asked)
    near(0, r.tr1)
    -- features alone rank the same
    local plain = retrieval.run(run_of()).retrieval
    near(plain.tr5, r.tr5)
    near(plain.ir5, r.ir5)
  end)

  it("asks of a caption's first pictures, each once, where pictures have several", function()
    local pairs_ = {}
    local r = rerank.run(fake { n = 6, images = { 1, 1, 2, 2, 3, 3 }, place = function(i) return direction(math.ceil(i / 2)) end,
      text = function(i) return direction(math.ceil(i / 2) % 3 + 1) end, match = function(i, j)
        pairs_[#pairs_ + 1] = i
        return math.ceil(i / 2) == math.ceil(j / 2) and 1 or -1
      end }, 6).reranked
    near(1, r.tr1)
    near(1, r.ir1)
    -- 3 pictures x 6 captions and 6 captions x 3 pictures, of which the first row stands for each
    assert.equal(36, #pairs_)
    for _, i in ipairs(pairs_) do assert.equal(1, i % 2) end
  end)
end)

describe("matching on held-out pictures", function()
  it("is 1 for a model that knows, beside what always saying no would get", function()
    local asked = {}
    local m = itm.run(fake { n = 8, place = direction, match = function(i, j)
      asked[#asked + 1] = { i, j }
      return i == j and 2 or -2
    end }).itm
    for _, key in ipairs { "itm_acc", "pair_acc", "random_acc", "hard_acc" } do near(1, m[key]) end
    near(2 / 3, m.majority)
    assert.equal(24, #asked)
  end)

  it("is a third for one that always says yes, and two thirds for one that always says no", function()
    local yes = itm.run(fake { n = 8, place = direction, match = function() return 1 end }).itm
    near(1 / 3, yes.itm_acc)
    near(1, yes.pair_acc)
    local no = itm.run(fake { n = 8, place = direction, match = function() return -1 end }).itm
    near(2 / 3, no.itm_acc)
    near(0, no.pair_acc)
  end)

  it("takes as the hard one the caption that looks most alike, never one of the same picture or words", function()
    -- 1..4 look alike; 2 shares the caption of 1 and 3 its picture, so 4 is what is left
    local function place(i) return { i <= 4 and 1 or 0, i <= 4 and 0.1 * (5 - i) or i } end
    local hard = {}
    itm.run(fake { n = 8, place = place, captions = { 1, 1, 3, 4, 5, 6, 7, 8 }, images = { 1, 2, 1, 4, 5, 6, 7, 8 }, match = function(i, j)
      hard[i] = hard[i] or {}
      table.insert(hard[i], j)
      if i ~= j then
        assert.is_false(i == 1 and (j == 2 or j == 3))
        assert.is_false(i == 2 and j == 1)
      end
      return 0
    end })
    local found = false
    for _, j in ipairs(hard[5]) do found = found or j == 8 end   -- the largest of the others by product
    assert.is_true(found)
  end)

  it("draws the same random captions again, whatever was drawn before", function()
    local function drawn()
      local list = {}
      itm.run(fake { n = 8, place = direction, match = function(i, j)
        list[#list + 1] = i .. "-" .. j
        return 0
      end })
      table.sort(list)
      return table.concat(list, " ")
    end
    local a = drawn()
    weft.rand { 100 }
    assert.equal(a, drawn())
  end)

  it("gives no figure where there is no other picture", function()
    assert.same({ itm = {} }, itm.run(fake { n = 2, place = direction, captions = { 1, 1 }, match = function() return 0 end }))
  end)
end)

describe("captions of held-out pictures", function()
  it("have the mean loss of a token over batches of unequal size", function()
    -- 4 pictures in batches of 3 and 1
    local c = captions.run(fake { n = 4, place = direction, tokens = 5, loss = function(indices) return #indices == 3 and 2 or 6 end }).captions
    near(3, c.loss)
    near(math.exp(3), c.perplexity)
  end)

  it("show at most n pictures of different captions, spread over the set", function()
    local run = fake { n = 20, place = direction, captions = { 1, 1, 1, 1, 1, 1 } }
    local shown = captions.samples(run, 8)
    assert.equal(8, #shown)
    local seen = {}
    for _, s in ipairs(shown) do
      assert.is_nil(seen[s.caption])
      seen[s.caption] = true
      assert.equal("said " .. s.name, s.generated)
    end
    assert.equal(3, #captions.samples(fake { n = 3, place = direction }, 8))
  end)
end)

describe("the protocol of scores", function()
  local protocol = require "weft.eval.protocol"
  local function of(more)
    local rows = {}
    for i = 1, 6 do rows[i] = { name = tostring(i), caption = "c" .. i, image_id = math.ceil(i / 2), caption_id = math.min(i, 5), hash = "h" } end
    local test = require("weft.data.captioned").new(rows, { fit = "crop", resize = 256, size = 224 })
    for k, v in pairs(more or {}) do test.options[k] = v end
    return protocol.of({ step = 40 }, test), test
  end

  it("says how many pictures and captions, of which set, how prepared and ranked, at which checkpoint", function()
    local p = of()
    assert.equal("3 5 2 40 step_00000040", table.concat({ p.pictures, p.captions, p.captions_per_picture, p.step, p.checkpoint }, " "))
    assert.truthy(protocol.line(p):find("held-out pictures of the run: 3 pictures, 5 distinct captions, 2 a picture (hash ", 1, true))
    assert.truthy(protocol.line(p):find("short edge 256, crop 224; ranked by ITC similarity", 1, true))
  end)

  it("is another one for other pictures, captions or sizes", function()
    local a, test = of()
    assert.equal(protocol.key(a), protocol.key((of())))
    for _, more in ipairs { { size = 112 }, { resize = 224 }, { fit = "stretch" } } do assert.are_not.equal(protocol.key(a), protocol.key((of(more)))) end
    test.rows[2].caption = "another"
    assert.are_not.equal(protocol.key(a), protocol.key(protocol.of({ step = 40 }, test)))
  end)
end)

describe("the tables of a run", function()
  it("show every evaluation beside chance", function()
    local function e(label, v)
      local r = { pictures = 156 }
      for _, k in ipairs { 1, 5, 10 } do r["tr" .. k], r["ir" .. k], r["chance" .. k] = v, v / 2, k / 156 end
      return { label = label, values = { retrieval = r, itm = { itm_acc = 0.7, pair_acc = 0.6, random_acc = 0.8, hard_acc = 0.5, majority = 2 / 3 } } }
    end
    local text = table.concat(require("weft.report.tables").lines { e("before", 0.1), e("Phase 1", 0.2), e("Phase 2", 0.4) }, "\n")
    assert.truthy(text:find "before training +10%.0 %% +10%.0 %% +10%.0 %% +5%.0 %%")
    assert.truthy(text:find "after Phase 1 +20%.0 %%")
    assert.truthy(text:find "after Phase 2 +40%.0 %% +40%.0 %% +40%.0 %% +20%.0 %%")
    assert.truthy(text:find "chance +0%.6 %% +3%.2 %% +6%.4 %%")
    assert.truthy(text:find("156 held-out pictures", 1, true))
    assert.truthy(text:find "after Phase 2 +matching +70%.0 %% %(pairs +60%.0 %%, random +80%.0 %%, hard +50%.0 %%%); always saying no: +66%.7 %%")
  end)
end)

