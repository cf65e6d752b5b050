-- rows_spec.lua: rows kept as columns: what they read like, that a list of tables gives the same numbers, split,
-- order and hash, and what they take.
local weft = require "weft"
local command = require "tests.support.command"
local tiny = require "tests.support.tiny"
local Dataset = require "weft.data.captioned"
local rows_of = require "weft.data.rows"
local split = require "weft.data.split"

local COLORS, THINGS = { "red", "green", "Blue", "white" }, { "ball", "house", "TREE", "boat", "dog" }
local function name(i) return ("%03d/%06d.png"):format(i % 200, i) end
local function caption(i) return ("A %s %s by number %d"):format(COLORS[i % 4 + 1], THINGS[i % 5 + 1], i % 701) end

-- The same rows twice: as columns and as a list.
local function both(n)
  local rows, list = rows_of.new "/root", {}
  for i = 1, n do
    local words = i % 3 == 0 and caption(i):upper() or caption(i)
    local where = i % 50 == 0 and "/else/" .. name(i) or name(i % 2000)
    rows:add(where, words)
    list[i] = { name = where, path = where:sub(1, 1) == "/" and where or "/root/" .. where, caption = words }
  end
  return rows, list
end

local function same(rows, list, fields)
  assert.equal(#list, rows:size())
  for i, row in rows:each() do
    for _, field in ipairs(fields) do
      if list[i][field] ~= row[field] then error(("row %d: %s: %s, not %s"):format(i, field, tostring(row[field]), tostring(list[i][field]))) end
    end
  end
end

describe("rows", function()
  it("read as a list of tables does, chunks of memory and texts longer than one included", function()
    local rows, list = both(70000)
    for _, n in ipairs { 0, 1, 65535, 65536, 2 ^ 20 + 3, 1 } do
      local words = ("x"):rep(n)
      rows:add("long.png", words)
      list[#list + 1] = { name = "long.png", path = "/root/long.png", caption = words }
    end
    same(rows, list, { "name", "path", "caption" })
    assert.is_nil(rows[0])
    assert.is_nil(rows[#list + 1])
    assert.is_nil(rows[1.5])
    assert.is_nil(rows[1].image_id)
    assert.equal("001/000001.png: " .. list[1].caption, tostring(rows[1]))
  end)

  it("number pictures and captions in the order in which they are met, captions whatever their case", function()
    local rows, list = both(9000)
    local names, words, n, m = {}, {}, 0, 0
    for _, row in ipairs(list) do
      local key = row.caption:lower()
      if not names[row.name] then n, names[row.name] = n + 1, n + 1 end
      if not words[key] then m, words[key] = m + 1, m + 1 end
      row.image_id, row.caption_id = names[row.name], words[key]
    end
    assert.equal(n, rows:number_names())
    assert.equal(m, rows:number_captions())
    same(rows, list, { "image_id", "caption_id" })
    assert.equal(n, rows_of.distinct(rows, "image_id"))
    assert.equal(m, rows_of.distinct(list, "caption_id"))
    local part = rows:select(function(i) return i % 7 == 0 end)
    assert.equal(math.floor(9000 / 7), part:size())
    assert.equal(list[14].image_id, part[2].image_id)
  end)

  it("split, come in batches and are hashed as a list is", function()
    local rows, list = both(9000)
    rows:number_names()
    rows:number_captions()
    for i, row in rows:each() do list[i].image_id, list[i].caption_id = row.image_id, row.caption_id end
    for seed = 1, 3 do
      local train, test = split.by_caption(rows, 0.2, seed)
      local train_list, test_list = split.by_caption(list, 0.2, seed)
      same(train, train_list, { "name", "caption" })
      same(test, test_list, { "name", "caption" })
      local a, b = Dataset.new(train, {}), Dataset.new(train_list, {})
      assert.equal(a:order_hash(seed), b:order_hash(seed))
      local p, q = a:plan(seed, 1, 64), b:plan(seed, 1, 64)
      assert.equal(q.n, p.n)
      for k = 1, p.n do assert.same(q[k], p[k]) end
    end
  end)

  it("are split and hashed as ever: resumed runs and old scores depend on it", function()
    local rows = both(3000)
    rows:number_names()
    local train, test = split.by_caption(rows, 0.25, 7)
    assert.equal("2250 750", train:size() .. " " .. test:size())
    assert.equal("c3e4f4f08dea2382", Dataset.new(train, {}):order_hash(7))
    assert.equal("084033bffdcb6eec", Dataset.new(test, {}):order_hash(7))
    local text = {}
    for i, row in train:each() do text[i] = ("%s\t%s\t"):format(row.name, row.caption) end
    for epoch = 1, 2 do
      local order = weft.randperm(2250, "cpu", { key = weft.random.hash("data order", 7), counter = 0ULL + epoch }):totable()
      for i, place in ipairs(order) do order[i] = place + 1 end
      text[#text + 1] = table.concat(order, ",")
    end
    assert.equal(require("weft.files").hash(table.concat(text, "\n")), Dataset.new(train, {}):order_hash(7))
  end)
end)

describe("a list of many rows", function()
  local root, remove
  before_each(function() root, remove = command.folder() end)
  after_each(function() remove() end)

  -- Bytes live as tensors, and Lua's.
  local function taken()
    collectgarbage()
    collectgarbage()
    return weft.memory().live, collectgarbage "count" * 1024
  end

  it("takes its letters and thirty bytes a row, nothing of Lua's memory, and opens no picture #slow", function()
    local n, letters, lines = 100000, 0, {}
    for i = 1, n do
      lines[i] = name(i) .. "," .. caption(i)
      letters = letters + #lines[i] - 1
    end
    tiny.write(root .. "/captions.csv", table.concat(lines, "\n"))
    lines = nil -- luacheck: ignore
    local live, lua = taken()
    local data = weft.data.captioned({ root = root, identify = "path", held_out = 0.1, length = 12, vocab = 300, size = 28, resize = 28 }, { seed = 1 })
    local now, lua_now = taken()
    assert.equal(n, data.train:size() + data.test:size())
    local by_row = (now - live - letters) / n
    assert.is_true(by_row < 34, ("%.1f bytes a row beside its letters"):format(by_row))
    assert.is_true(lua_now - lua < 2 ^ 20, ("%d bytes of Lua's"):format(lua_now - lua))
    -- an epoch's order: eight bytes a row while it is drawn, four to keep it
    weft.reset_peak()
    collectgarbage "stop"
    lua = collectgarbage "count"
    local plan = data.train:plan(1, 1, 50)
    local grown = (collectgarbage "count" - lua) * 1024
    collectgarbage "restart"
    assert.equal(math.floor(data.train:size() / 50), plan.n)
    assert.is_true(weft.memory().peak - now < 14 * n, ("%d bytes for an order"):format(weft.memory().peak - now))
    assert.is_true(grown < 64 * n, ("%d bytes of Lua's passed by"):format(grown))
    plan:free()
    local _, lua_after = taken()
    assert.is_true(lua_after - lua_now < 2 ^ 18)
    local note = table.concat(data.notes, "\n")
    assert.truthy(note:find("pictures: 100000 (100000 distinct paths), ", 1, true), note)
    assert.truthy(note:find("those not there once they are met", 1, true), note)
  end)

  it("is read a piece at a time, whatever its ends of lines", function()
    local long = ("words "):rep(60000)
    tiny.write(root .. "/captions.jsonl", ('{"image":"a.png","caption":"One"}\r\n\n{"image":"b.png","caption":"%s"}\r\n'):format(long)
      .. '{"image":"c.png","caption":"Three"}')
    local rows = assert(weft.data.find(root, "jsonl", true))
    assert.equal(3, rows:size())
    assert.equal("One", rows[1].caption)
    assert.equal((long:gsub(" $", "")), rows[2].caption)
    assert.equal("Three", rows[3].caption)
    local lines = {}
    for i = 1, 40000 do lines[i] = name(i) .. "," .. caption(i) .. (i % 2 == 0 and "\r" or "") end
    tiny.write(root .. "/captions.csv", table.concat(lines, "\n") .. "\n")
    rows = assert(weft.data.find(root, "csv", true))
    assert.equal(40000, rows:size())
    for i, row in rows:each() do
      if row.name ~= name(i) or row.caption ~= caption(i) then error(("row %d reads %s"):format(i, tostring(row))) end
    end
  end)

  it("of pictures told apart by path finds a missing one when it comes to it, and reads the rest", function()
    for _, file in ipairs { "a", "b" } do tiny.picture(("%s/%s.png"):format(root, file), "red", "square", 1) end
    tiny.write(root .. "/captions.csv", "a.png,One thing\nb.png,Another thing\nnone.png,No thing\na.png,The first again\n")
    local data = weft.data.captioned({ root = root, identify = "path", held_out = 0, length = 12, vocab = 300, size = 28, resize = 28, threads = 1 },
      { seed = 1 })
    assert.equal(4, data.train:size())
    assert.equal(3, data.train:count_pictures())
    data.train:drop_damaged()
    assert.equal(3, data.train:size())
    assert.same({ "none.png" }, { data.train.damaged[1] })
    assert.equal(data.train.rows[1].image_id, data.train.rows[3].image_id)
    local ok, message = pcall(weft.data.captioned, { root = root, identify = "name" }, { seed = 1 })
    assert.is_false(ok)
    assert.truthy(tostring(message):find("identify", 1, true), message)
  end)
end)
