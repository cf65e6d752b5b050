local image = require "weft.io.image"
local loader = require "weft.io.loader"
local support = require "tests.io.support"

local golden = support.golden .. "preprocess/"
local names = { "wide.png", "tall.png", "photo.jpg", "small.png", "exif6.jpg", "rgba.png", "grey.png", "palette.png" }

local function plans()
  local out = {}
  for i, name in ipairs(names) do
    out[i] = { path = golden .. name, resize = 40, flip = i % 2 == 0 }
  end
  out[#out + 1] = { path = golden .. "photo.jpg", crop = { 10, 20, 100, 120 }, resize = { 32, 32 }, filter = "bilinear" }
  return out
end

local function values(t) return (support.values(t)) end

describe("the loader", function()
  local dir
  local open = {}
  setup(function() dir = support.directory() end)
  teardown(support.cleanup)
  local function new(options)
    options.height, options.width = 32, 32
    local l = loader.new(options)
    open[#open + 1] = l
    return l
  end
  after_each(function()
    for _, l in ipairs(open) do l:close() end
    open = {}
  end)

  it("gives what the single steps give", function()
    local l = new {}
    local got = values(l:take(l:submit { { path = golden .. "photo.jpg", crop = { 3, 5, 200, 100 }, resize = 40, flip = true } }))
    local p = image.resize(image.crop(image.load(golden .. "photo.jpg"), 3, 5, 200, 100), 40)
    assert.same(values(image.normalize(image.center_crop(p, 32), { flip = true })), got)
  end)

  it("enlarges a window of what it keeps, from the cache or not", function()
    local p = image.resize(image.load(golden .. "photo.jpg"), { 32, 32 })
    local want = values(image.normalize(image.resize(image.crop(p, 5, 9, 16, 20), { 32, 32 }), { flip = true }))
    for _, bytes in ipairs { 0, 1e6 } do
      local l = new { cache = bytes }
      local item = { path = golden .. "photo.jpg", resize = { 32, 32 }, flip = true, window = { 5, 9, 16, 20 } }
      assert.same(want, values(l:take(l:submit { item })))
      assert.same(want, values(l:take(l:submit { item })))
      assert.equal(bytes > 0 and 1 or 0, (select(2, l:cached())))
      item.window, item.flip = nil, false
      assert.same(values(image.normalize(p)), values(l:take(l:submit { item })))
    end
  end)

  it("gives the same bits for any number of threads, cached or not", function()
    local want
    for _, threads in ipairs { 1, 2, 7 } do
      local l = new { threads = threads, cache = threads == 2 and 1e6 or 0 }
      for _ = 1, 2 do
        local got = values(l:take(l:submit(plans())))
        want = want or got
        assert.same(want, got)
      end
    end
  end)

  it("decodes a picture once when it may keep it", function()
    local l = new { cache = 1e6, depth = 3 }
    l:take(l:submit(plans()))
    local bytes, hits = l:cached()
    assert.equal(0, hits)
    assert.is_true(bytes > 8 * 32 * 32 * 3 and bytes < 8 * (32 * 32 * 3 + 256))
    l:take(l:submit(plans()))
    assert.equal(8, select(2, l:cached()))
  end)

  it("keeps its cache within the budget", function()
    local l = new { cache = 10000 }
    l:take(l:submit(plans()))
    l:take(l:submit(plans()))
    local bytes, hits = l:cached()
    assert.is_true(bytes <= 10000)
    assert.is_true(hits >= 3)
  end)

  it("reports damaged pictures by name, and zeroes their slots alone", function()
    local bad = support.write(dir .. "bad.png", support.read(golden .. "small.png"):sub(1, 3000))
    local l = new { resize = 32, mean = { 0, 0, 0 }, std = { 1, 1, 1 } }
    local t, problems = l:take(l:submit { golden .. "small.png", bad, dir .. "none.png", golden .. "small.png" })
    assert.matches("^" .. bad:gsub("%p", "%%%0") .. ": truncated PNG", problems[2])
    assert.matches("none.png: No such file", problems[3])
    assert.is_nil(problems[1])
    assert.is_nil(problems[4])
    local v, size = values(t), 3 * 32 * 32
    for i = size + 1, 3 * size do assert.equal(0, v[i]) end
    for i = 1, size do assert.equal(v[i], v[3 * size + i]) end
    local _, none = l:take(l:submit { golden .. "small.png" })
    assert.same({}, none)
  end)

  it("hands batches out by ticket, in any order", function()
    local l = new { depth = 3, resize = 32 }
    local a, b = l:submit { golden .. "small.png" }, l:submit { golden .. "grey.png" }
    local second, first = values(l:take(b)), values(l:take(a))
    assert.same(first, values(l:take(l:submit { golden .. "small.png" })))
    assert.same(second, values(l:take(l:submit { golden .. "grey.png" })))
    assert.is_true(l:waited() >= 0)
  end)

  it("refuses more batches than its depth, unknown tickets and bad plans", function()
    local l = new { depth = 1, resize = 32 }
    local ticket = l:submit { golden .. "small.png" }
    assert.has_error(function() l:submit { golden .. "small.png" } end)
    l:take(ticket)
    assert.has_error(function() l:take(ticket) end)
    assert.has_error(function() l:submit {} end)
    assert.has_error(function() l:submit { { path = "x", resize = -1 } } end)
    assert.has_error(function() l:submit { { path = "x", crop = { 1, 1, 0, 5 } } } end)
    for _, window in ipairs { { 0, 1, 5, 5 }, { 1, 1, 33, 5 }, { 30, 1, 5, 5 }, { 1, 1, 5, 0 } } do
      assert.has_error(function() l:submit { { path = "x", window = window } } end)
    end
    assert.has_error(function() l:submit { { path = "" } } end)
    assert.has_error(function() l:submit { { pth = "x" } } end)
    assert.has_error(function() loader.new { height = 0, width = 5 } end)
    assert.has_error(function() loader.new { height = 5, width = 5, threads = 0 } end)
  end)

  it("ends with batches under way", function()
    local l = new { depth = 4 }
    for _ = 1, 4 do l:submit(plans()) end
    l:close()
    l:close()
  end)
end)
