local weft = require "weft"
local tiny = require "tests.support.tiny"
local Dataset = require "weft.data.captioned"
local split = require "weft.data.split"

local root, remove
before_each(function() root, remove = tiny.pictures(24) end)
after_each(function() remove() end)

local defaults = { root = "", held_out = 0.25, length = 12, vocab = 290, size = 28, resize = 28, threads = 1, cache = 4 }
local function data_of(more, seed)
  local c = {}
  for k, v in pairs(defaults) do c[k] = v end
  c.root = root
  for k, v in pairs(more or {}) do c[k] = v end
  return weft.data.captioned(c, { seed = seed or 1 })
end

local function names(rows)
  local out = {}
  for i, r in rows:each() do out[i] = r.name end
  return table.concat(out, " ")
end

describe("the split", function()
  it("has no caption on both sides, whatever its case", function()
    tiny.write(root .. "/01.txt", "The SAME words\n")
    tiny.write(root .. "/02.txt", "the same Words\n")
    for seed = 1, 8 do
      local data = data_of({ held_out = 0.4 }, seed)
      local side = {}
      for name, set in pairs { train = data.train, test = data.test } do
        for _, r in set.rows:each() do
          local key = r.caption:lower()
          assert.is_true(side[key] == nil or side[key] == name, key)
          side[key] = name
        end
      end
      assert.equal(24, data.train:size() + data.test:size())
      assert.is_true(math.abs(data.test:size() - 0.4 * 24) <= 1)
    end
  end)

  it("is a function of captions and seed alone", function()
    local a, b, c = data_of({}, 1), data_of({}, 1), data_of({}, 2)
    assert.equal(names(a.test.rows), names(b.test.rows))
    assert.are_not.equal(names(a.test.rows), names(c.test.rows))
    -- in another order of the list, the same groups
    local list, back = {}, {}
    for i = 1, 30 do list[i] = { caption = "c" .. i % 20, name = tostring(i) } end
    for i = 30, 1, -1 do back[#back + 1] = list[i] end
    local function captions(rows)
      local set = {}
      for _, r in ipairs(rows) do set[r.caption] = true end
      return set
    end
    local _, one = split.by_caption(list, 0.3, 5)
    local _, two = split.by_caption(back, 0.3, 5)
    assert.same(captions(one), captions(two))
  end)

  it("spreads captions that differ in a letter, as it does others", function()
    local list = {}
    for i = 1, 26 do
      list[i] = { caption = ("The letter %s."):format(string.char(96 + i)) }
      list[26 + i] = { caption = ("The sign for the letter %s in sign language."):format(string.char(96 + i)) }
    end
    for i = 53, 400 do list[i] = { caption = ("Picture %d of many."):format(i * 7919) } end
    local shares = {}
    for seed = 1, 40 do
      local _, test = split.by_caption(list, 0.25, seed)
      local n = 0
      for _, r in ipairs(test) do if r.caption:find "^The letter" then n = n + 1 end end
      shares[seed] = n / 26
    end
    -- a fair draw of 26 out of 400 gives 0.25 on average, with a spread of 0.082
    local mean, spread = 0, 0
    for _, x in ipairs(shares) do mean = mean + x / #shares end
    for _, x in ipairs(shares) do spread = spread + (x - mean) ^ 2 / (#shares - 1) end
    assert.is_true(math.abs(mean - 0.25) < 0.06, ("mean %.3f"):format(mean))
    assert.is_true(spread ^ 0.5 > 0.05 and spread ^ 0.5 < 0.12, ("spread %.3f"):format(spread ^ 0.5))
  end)

  it("never holds out more than its share, and nothing of 0", function()
    local list = {}
    for i = 1, 100 do list[i] = { caption = "c" .. math.floor(i / 7), name = tostring(i) } end
    for share = 0, 90, 15 do
      local train, test = split.by_caption(list, share / 100, 1)
      assert.is_true(#test <= share and #test > share - 7)
      assert.equal(100, #train + #test)
    end
    assert.equal(0, data_of({ held_out = 0 }).test:size())
    assert.has_error(function() data_of { held_out = 1 } end, "data.held_out: a share from 0 to below 1 is expected, got 1")
  end)
end)

describe("the order of an epoch", function()
  it("depends on seed and epoch alone, and takes every picture once", function()
    local data = data_of()
    local a = table.concat(data.train:order(3, 2):totable(), ",")
    weft.rand { 5 }
    assert.equal(a, table.concat(data_of().train:order(3, 2):totable(), ","))
    assert.are_not.equal(a, table.concat(data.train:order(3, 1):totable(), ","))
    assert.are_not.equal(a, table.concat(data.train:order(4, 2):totable(), ","))
    local sorted = data.train:order(3, 2):totable()
    table.sort(sorted)
    for i = 1, data.train:size() do assert.equal(i - 1, sorted[i]) end
  end)

  local function fake(ids)
    local rows = {}
    for i, id in ipairs(ids) do rows[i] = { name = tostring(i), caption = "c", image_id = id, caption_id = i, ids = { 1, 2 } } end
    return Dataset.new(rows, { length = 4, pad = 0 })
  end

  it("has a picture at most once in a batch, and the same number of batches each epoch", function()
    local ids = {}
    for i = 1, 40 do ids[i] = i % 13 end
    local set = fake(ids)
    for epoch = 1, 20 do
      local plan, taken = set:plan(1, epoch, 8), {}
      assert.equal(5, plan.n)
      for k = 1, plan.n do
        local seen = {}
        for _, i in ipairs(plan[k]) do
          assert.is_nil(seen[ids[i]])
          assert.is_nil(taken[i])
          seen[ids[i]], taken[i] = true, true
        end
      end
    end
  end)

  it("has full batches where no picture is there twice", function()
    local ids = {}
    for i = 1, 21 do ids[i] = i end
    local plan = fake(ids):plan(1, 1, 4)
    for k = 1, plan.n do assert.equal(4, #plan[k]) end
  end)

  it("comes out short, not empty, where all pictures are the same", function()
    local plan = fake({ 7, 7, 7, 7, 7, 7 }):plan(1, 1, 3)
    assert.equal(2, plan.n)
    for k = 1, plan.n do assert.equal(1, #plan[k]) end
  end)
end)

describe("captions", function()
  it("keep BOS and EOS when they are cut, and the note says how many were", function()
    tiny.write(root .. "/03.txt", "a very long caption indeed that does not fit into twelve tokens at all\n")
    tiny.write(root .. "/04.txt", "  \n")
    os.remove(root .. "/05.txt")
    tiny.write(root .. "/06.txt", "only\194\160spaces   between\nand a second line\n")
    local data = data_of { length = 8, held_out = 0 }
    local cut, longest = 0, 0
    for _, r in data.train.rows:each() do
      assert.equal(data.special.bos, r.ids[1])
      assert.equal(data.special.eos, r.ids[#r.ids])
      assert.is_true(#r.ids <= 8)
      local n = #data.tokenizer:encode(r.caption)
      longest = math.max(longest, n)
      if n + 2 > 8 then
        cut = cut + 1
        assert.equal(8, #r.ids)
      end
      if r.name == "06.png" then assert.equal("only spaces between", r.caption) end
    end
    local notes = table.concat(data.notes, "\n")
    assert.is_true(cut > 0)
    assert.truthy(notes:find(("\ncaptions: %.1f %% cut at 8 tokens, longest %d, 1 empty"):format(100 * cut / 22, longest), 1, true), notes)
    assert.truthy(notes:find("pictures: 22 (22 distinct), 22 to train on, 0 held out by groups of equal captions; left out: 1 without a caption",
      1, true), notes)
    local batch = data.train:batch_of({ 1, 2, 3 }, false)
    local ids, mask = batch.ids:totable(), batch.mask:to("int64"):totable()
    for b = 1, 3 do
      local row = data.train.rows[b].ids
      for k = 1, 8 do
        assert.equal(row[k] or data.special.pad, ids[b][k])
        assert.equal(row[k] and 1 or 0, mask[b][k])
      end
    end
    assert.has_error(function() data_of { length = 2 } end, "data.length: at least 3 tokens are expected (<s>, one, </s>), got 2")
  end)

  it("are checked against the vocabulary before anything is computed", function()
    local rows = { { name = "cat.png", ids = { 0, 3 } }, { name = "dog.png", ids = { 1, 16390, 2 } } }
    local ok, message = pcall(Dataset.new, rows, { vocab = 16384 })
    assert.is_false(ok)
    assert.truthy(tostring(message):find("token 16390 outside 0..16383, caption 2 (dog.png)", 1, true), message)
  end)

  it("need a tokenizer whose <pad>, <s> and </s> are three ids", function()
    local function fails(map, expected)
      local given = { size = 10, id = function(_, name) return map[name] end }
      local ok, message = pcall(weft.data.captioned, { root = root }, { seed = 1, tokenizer = given })
      assert.is_false(ok)
      assert.truthy(tostring(message):find(expected, 1, true), message)
    end
    fails({ ["<pad>"] = 0, ["<s>"] = 1, ["</s>"] = 1 }, "must be three different ids, got 0, 1 and 1")
    fails({ ["<pad>"] = 0, ["<s>"] = 1 }, "the tokenizer has no eos token")
  end)

  it("of the tokenizer come from the training side alone", function()
    local data = data_of { vocab = 400 }
    local lines = {}
    for i, r in data.train.rows:each() do lines[i] = r.caption end
    local again = require("weft.io.tokenizer").train(lines, { vocab_size = 400, special_tokens = { "<pad>", "<s>", "</s>", "<image>" } })
    for _, r in data.test.rows:each() do assert.same(again:encode(r.caption), data.tokenizer:encode(r.caption)) end
    assert.equal(again.size, data.vocab)
  end)
end)

describe("pictures", function()
  it("have ids by content and captions ids by words", function()
    assert(os.execute(("cp %s/02.png %s/copy.png && cp %s/07.txt %s/copy.txt"):format(root, root, root, root)) == 0)
    tiny.write(root .. "/08.txt", tiny.read(root .. "/09.txt"):upper())
    local data, by = data_of { held_out = 0 }, {}
    for _, r in data.train.rows:each() do by[r.name] = r end
    assert.equal(by["08.png"].caption_id, by["09.png"].caption_id)
    assert.equal(by["02.png"].image_id, by["copy.png"].image_id)
    assert.equal(by["07.png"].caption_id, by["copy.png"].caption_id)
    assert.are_not.equal(by["02.png"].image_id, by["03.png"].image_id)
    assert.equal(by["05.png"].caption_id, by["06.png"].caption_id)
  end)

  it("are read ahead as they are read at once", function()
    local data = data_of { held_out = 0 }
    local next_batch = data.train:reader { epoch = 1, position = 2, batch = 4, accumulate = 1, seed = 3 }
    local plan = data.train:plan(3, 1, 4)
    local n = 0
    for batch in next_batch do
      n = n + 1
      assert.same(plan[n + 2], batch.indices)
      local pixels = data.train:batch_of(batch.indices).pixels
      assert.equal(0, (batch.pixels - pixels):abs():max():item())
      assert.same({ 1, 2, 3, 4 }, batch.pixel_rows)
    end
    assert.equal(4, n)
  end)

  it("can be read again from anywhere when a loop was left early", function()
    local data = data_of { held_out = 0 }
    local function reader(position)
      return data.train:reader { epoch = 1, position = position, batch = 4, accumulate = 1, seed = 3 }
    end
    local first = reader(0)
    first()
    local all = {}
    for batch in reader(1) do all[#all + 1] = batch end
    assert.equal(5, #all)
    assert.equal(0, (all[1].pixels - data.train:batch_of(data.train:plan(3, 1, 4)[2]).pixels):abs():max():item())
    assert.has_error(function() first() end, "this reader was left for another; read on from that one")
  end)

  it("that are damaged leave their batch, and are named once", function()
    tiny.write(root .. "/03.png", "no picture")
    tiny.write(root .. "/09.png", tiny.read(root .. "/09.png"):sub(1, 60))
    local data = data_of { held_out = 0 }
    local seen = {}
    data.train.on_damage = function(name, message) seen[#seen + 1] = name .. ": " .. message end
    for epoch = 1, 2 do
      local total = 0
      for batch in data.train:reader { epoch = epoch, position = 0, batch = 6, accumulate = 1, seed = 1 } do
        total = total + #batch.indices
        assert.equal(#batch.indices, batch.pixels:size(1))
        assert.equal(#batch.indices, batch.ids:size(1))
        for b, i in ipairs(batch.indices) do
          local row = data.train.rows[i]
          assert.is_true(row.name ~= "03.png" and row.name ~= "09.png")
          assert.equal(row.image_id, batch.image_ids[b])
          local own = data.train:batch_of { i }
          assert.equal(0, (own.pixels:select(1, 1) - batch.pixels:select(1, b)):abs():max():item())
          assert.same(own.ids:totable()[1], batch.ids:totable()[b])
        end
      end
      assert.equal(22, total)
    end
    table.sort(seen)
    assert.equal(2, #seen)
    assert.truthy(seen[1]:find("^03.png: .*03.png"), seen[1])
    assert.truthy(seen[2]:find "^09.png: ")
  end)

  it("that are damaged are taken out of what is scored", function()
    tiny.write(root .. "/03.png", "no picture")
    local data = data_of { held_out = 0 }
    data.train:drop_damaged()
    assert.equal(23, data.train:size())
    assert.is_nil(names(data.train.rows):find("03.png", 1, true))
  end)

  it("whose features are known are not decoded", function()
    local data = data_of { held_out = 0 }
    local known = {}
    for _, i in ipairs(data.train:plan(1, 1, 4)[1]) do known[data.train.rows[i].image_id] = true end
    local second = data.train:plan(1, 1, 4)[2]
    known[data.train.rows[second[3]].image_id] = true
    local next_batch = data.train:reader { epoch = 1, position = 0, batch = 4, accumulate = 1, seed = 1,
      covered = function(id) return known[id] end }
    local first = next_batch()
    assert.is_nil(first.pixels)
    assert.same({}, first.pixel_rows)
    local batch = next_batch()
    assert.same({ 1, 2, 4 }, batch.pixel_rows)
    assert.equal(3, batch.pixels:size(1))
    local all = data.train:batch_of(second)
    assert.equal(0, (batch.pixels:select(1, 3) - all.pixels:select(1, 4)):abs():max():item())
  end)

  it("are flipped by a draw of seed, epoch and place", function()
    local data = data_of { held_out = 0, flip = true }
    local function run(epoch)
      local out = {}
      for batch in data.train:reader { epoch = epoch, position = 0, batch = 4, accumulate = 1, seed = 1, covered = function() return true end } do
        local plain = data.train:batch_of(batch.indices).pixels
        for b = 1, 4 do
          local got, own = batch.pixels:select(1, b), plain:select(1, b)
          local same = (got - own):abs():max():item() == 0
          local turned = (got - weft.flip(own, 3)):abs():max():item() == 0
          assert.is_true(same or turned)
          out[#out + 1] = (same and "s" or "") .. (turned and "t" or "")
        end
      end
      return table.concat(out)
    end
    local one = run(1)
    assert.equal(one, run(1))
    assert.truthy(one:find "s" and one:find "t")
  end)

  it("are cut at random by a draw of seed, epoch and place, and scored whole", function()
    local data, whole = data_of { held_out = 0, random_crop = 0.5, vary_after = 1 }, data_of { held_out = 0 }
    local function run(epoch, seed)
      local sums, cut = {}, 0
      for batch in data.train:reader { epoch = epoch, position = 0, batch = 4, accumulate = 1, seed = seed } do
        assert.equal(epoch > 1, batch.varied)
        local plain = data.train:batch_of(batch.indices).pixels
        assert.same(whole.train:batch_of(batch.indices).pixels:totable(), plain:totable())
        for b = 1, 4 do
          local got = batch.pixels:select(1, b)
          if (got - plain:select(1, b)):abs():max():item() > 0 then cut = cut + 1 end
          sums[#sums + 1] = ("%.4f"):format(got:mean():item())
        end
      end
      assert.is_true(epoch == 1 and cut == 0 or epoch > 1 and cut >= 20, cut .. " of 24 pictures were cut")
      return table.concat(sums, " ")
    end
    run(1, 1)
    assert.equal(run(2, 1), run(2, 1))
    assert.are_not.equal(run(2, 1), run(3, 1))
    assert.are_not.equal(run(2, 1), run(2, 2))
    assert.truthy(table.concat(data.notes, "\n"):find("pictures are cut to 50 .. 100 % of their area anew in every epoch but the first", 1, true))
    assert.is_nil(table.concat(whole.notes, "\n"):find("anew", 1, true))
  end)

  it("are cut to windows of the share that is asked for, inside the picture", function()
    local augment = require "weft.data.augment"
    local least, most, rows = 1, 0, {}
    for at = 1, 50 do
      for _, change in ipairs(augment.draw({ size = 100, flip = false, random_crop = 0.4, vary_after = 0 }, 1, 1, at, 8)) do
        local y, x, h, w = unpack(change.window)
        assert.is_true(y >= 1 and x >= 1 and y + h - 1 <= 100 and x + w - 1 <= 100)
        assert.is_true(h / w < 1.4 and w / h < 1.4)
        least, most = math.min(least, h * w / 1e4), math.max(most, h * w / 1e4)
        rows[y] = true
      end
    end
    assert.is_true(least > 0.38 and least < 0.45 and most > 0.95 and most <= 1)
    local n = 0
    for _ in pairs(rows) do n = n + 1 end
    assert.is_true(n > 20)
    assert.is_false(augment.varies { flip = false, random_crop = 1, vary_after = 0 })
    assert.is_true(augment.varies { flip = true, random_crop = 1, vary_after = 0 })
    assert.is_true(augment.varies({ flip = true, random_crop = 1, vary_after = 2 }, 3))
    assert.is_false(augment.varies({ flip = true, random_crop = 1, vary_after = 2 }, 2))
  end)
end)

describe("plain text", function()
  it("comes in lines, each once before any comes twice, the same after a resume", function()
    local path = root .. "/words.text"
    tiny.write(path, "one line\n\n  another   line \nthe third\nand four\nand number five\n")
    local data = data_of { held_out = 0, text = path, length = 24 }
    assert.truthy(table.concat(data.notes, "\n"):find("text: 5 lines of " .. path, 1, true))
    local function lines(position)
      local out = {}
      for batch in data.train:reader { epoch = 1, position = position, batch = 4, accumulate = 2, seed = 1 } do
        for _, ids in ipairs(batch.text.ids:totable()) do out[#out + 1] = data.tokenizer:decode(ids, { skip_special = true }) end
      end
      return out
    end
    local all = lines(0)
    assert.equal(24, #all)
    for pass = 0, 3 do
      local set = { unpack(all, pass * 5 + 1, pass * 5 + 5) }
      table.sort(set)
      assert.same({ "and four", "and number five", "another line", "one line", "the third" }, set)
    end
    assert.same({ unpack(all, 9) }, lines(2))
    -- shares of a step: token-weighted, their mean is 1
    local shares, n = 0, 0
    for batch in data.train:reader { epoch = 1, position = 0, batch = 4, accumulate = 2, seed = 1 } do
      shares, n = shares + batch.text.token_share, n + 1
    end
    assert.is_true(math.abs(shares / n - 1) < 1e-12)
  end)

  it("is refused where there is none", function()
    assert.has_error(function() data_of { text = root .. "/none" } end)
    tiny.write(root .. "/blank", "\n  \n")
    assert.has_error(function() data_of { text = root .. "/blank" } end, ("data.text: %s/blank has no line of text"):format(root))
  end)
end)

