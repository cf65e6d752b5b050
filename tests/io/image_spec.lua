local weft = require "weft"
local image = require "weft.io.image"
local safetensors = require "weft.io.safetensors"
local support = require "tests.io.support"

local golden = support.golden .. "preprocess/"
local le = support.le

local function be(n) return le(n, 4):reverse() end

local function crc32(s)
  local bit = require "bit"
  local c = -1
  for i = 1, #s do
    c = bit.bxor(c, s:byte(i))
    for _ = 1, 8 do c = bit.bxor(bit.rshift(c, 1), bit.band(c, 1) == 1 and 0xedb88320 or 0) end
  end
  return bit.bnot(c) % 2 ^ 32
end

local function chunk(kind, data) return be(#data) .. kind .. data .. be(crc32(kind .. data)) end

-- A PNG of stored (uncompressed) rows. color: 0 grey, 2 RGB, 4 grey and alpha, 6 RGBA.
local function png(w, h, depth, color, samples, extra)
  local per_row = #samples / h
  local raw = {}
  for y = 0, h - 1 do raw[#raw + 1] = "\0" .. samples:sub(y * per_row + 1, (y + 1) * per_row) end
  raw = table.concat(raw)
  local zlib = "\120\1\1" .. le(#raw, 2) .. le(65535 - #raw, 2) .. raw .. "\0\0\0\0"
  return "\137PNG\r\n\26\n" .. chunk("IHDR", be(w) .. be(h) .. string.char(depth, color, 0, 0, 0)) .. (extra or "")
    .. chunk("IDAT", zlib) .. chunk("IEND", "")
end

local function exif(orientation)
  return "MM\0*\0\0\0\8\0\1\1\18\0\3\0\0\0\1\0" .. string.char(orientation) .. "\0\0\0\0\0\0"
end

-- A 24-bit BMP of grey values, rows from the bottom.
local function bmp(w, h, value)
  local row = (string.char(value):rep(3 * w) .. "\0\0\0"):sub(1, math.ceil(3 * w / 4) * 4)
  return "BM" .. le(54 + #row * h, 4) .. le(0, 4) .. le(54, 4) .. le(40, 4) .. le(w, 4) .. le(h, 4) .. le(1, 2) .. le(24, 2)
    .. le(0, 4) .. le(#row * h, 4) .. le(0, 16) .. row:rep(h)
end

local function pixels(t) return (support.values(t)) end

describe("image", function()
  local dir
  setup(function() dir = support.directory() end)
  teardown(support.cleanup)

  describe("preprocessing", function()
    local expected = assert(safetensors.load(golden .. "expected.safetensors"))
    local function preprocess(name)
      local p = assert(image.load(golden .. name, { alpha = "drop", orientation = false }))
      return image.normalize(image.center_crop(image.resize(p, 256), 224))
    end
    -- Largest difference over every fourth row and column and row 100, in steps of one byte.
    local function distance(name)
      local got = pixels(preprocess(name))
      local most = 0
      local grid, row = pixels(expected[name]), pixels(expected[name .. ".row100"])
      for c = 0, 2 do
        local step = 1 / 255 / image.std[c + 1]
        for y = 0, 55 do
          for x = 0, 55 do
            most = math.max(most, math.abs(got[c * 50176 + y * 4 * 224 + x * 4 + 1] - grid[c * 3136 + y * 56 + x + 1]) / step)
          end
        end
        for x = 0, 223 do
          most = math.max(most, math.abs(got[c * 50176 + 100 * 224 + x + 1] - row[c * 224 + x + 1]) / step)
        end
      end
      return most
    end

    for _, name in ipairs { "wide", "tall", "small", "grey", "rgba", "palette" } do
      it("gives the bytes of Hugging Face's processor for " .. name .. ".png", function()
        assert.is_true(distance(name .. ".png") < 0.001)
      end)
    end
    -- Two decoders of JPEG round their transforms differently.
    for _, name in ipairs { "photo.jpg", "exif6.jpg" } do
      it("comes within three levels of 255 for " .. name, function()
        assert.is_true(distance(name) < 3.001)
      end)
    end
  end)

  it("reads grey, alpha, 16 bits and palettes as RGB", function()
    assert.same({ 7, 7, 7, 200, 200, 200 }, pixels(assert(image.decode(png(2, 1, 8, 0, "\7\200")))))
    assert.same({ 1, 2, 3 }, pixels(assert(image.decode(png(1, 1, 16, 2, "\1\255\2\255\3\255")))))
    assert.same({ 9, 9, 9 }, pixels(assert(image.decode(png(1, 1, 16, 0, "\9\200")))))
    assert.same({ 5, 5, 5, 5, 5, 5 }, pixels(assert(image.decode(bmp(2, 1, 5)))))
  end)

  it("composes alpha onto a background, or drops it", function()
    local bytes = png(3, 1, 8, 6, "\10\20\30\255" .. "\10\20\30\0" .. "\101\0\200\128")
    assert.same({ 10, 20, 30, 255, 255, 255, 178, 127, 227 }, pixels(image.decode(bytes)))
    assert.same({ 10, 20, 30, 0, 0, 255, 51, 0, 227 }, pixels(image.decode(bytes, { background = { 0, 0, 255 } })))
    assert.same({ 10, 20, 30, 10, 20, 30, 101, 0, 200 }, pixels(image.decode(bytes, { alpha = "drop" })))
    assert.same({ 131, 131, 131 }, pixels(image.decode(png(1, 1, 8, 4, "\8\128"))))
  end)

  -- The picture is 1 2 3 / 4 5 6; what each orientation shows, by rows.
  local turned = {
    { 2, 3, "123456" }, { 2, 3, "321654" }, { 2, 3, "654321" }, { 2, 3, "456123" },
    { 3, 2, "142536" }, { 3, 2, "415263" }, { 3, 2, "635241" }, { 3, 2, "362514" },
  }
  for orientation, want in ipairs(turned) do
    it("turns EXIF orientation " .. orientation .. " upright", function()
      local t = assert(image.decode(png(3, 2, 8, 0, "\1\2\3\4\5\6", chunk("eXIf", exif(orientation)))))
      local values, shape = support.values(t)
      local got = {}
      for i = 1, #values, 3 do got[#got + 1] = values[i] end
      assert.same({ want[1], want[2], 3 }, shape)
      assert.equal(want[3], table.concat(got))
    end)
  end

  it("reads EXIF from JPEG, and leaves it be when asked", function()
    assert.same({ 240, 180, 3 }, select(2, support.values(image.load(golden .. "exif6.jpg"))))
    assert.same({ 180, 240, 3 }, select(2, support.values(image.load(golden .. "exif6.jpg", { orientation = false }))))
  end)

  it("takes damaged EXIF as none", function()
    for _, tiff in ipairs { "", "MM", "MM\0*\255\255\255\255", "II*\0\8\0\0\0\255\255", exif(9), exif(0), exif(6):sub(1, 18) } do
      local t = assert(image.decode(png(3, 2, 8, 0, "\1\2\3\4\5\6", chunk("eXIf", tiff))))
      assert.same({ 2, 3, 3 }, select(2, support.values(t)))
    end
  end)

  describe("resizing", function()
    -- The rule written out: taps in doubles, weights in 22 bits, bytes between the passes.
    local function kernel(filter, x)
      x = math.abs(x)
      if filter == "bilinear" then return math.max(0, 1 - x) end
      if x < 1 then return (1.5 * x - 2.5) * x * x + 1 end
      return x < 2 and ((x - 5) * x + 8) * x * -0.5 + 2 or 0
    end
    local function pass(line, to, filter)
      local from, out = #line, {}
      if from == to then return line end
      local scale = from / to
      local wide = math.max(scale, 1)
      local support_ = (filter == "bilinear" and 1 or 2) * wide
      for i = 0, to - 1 do
        local c = (i + 0.5) * scale
        local first, last = math.max(0, math.floor(c - support_ + 0.5)), math.min(from, math.floor(c + support_ + 0.5)) - 1
        local sum, total = 0, 0
        for j = first, last do total = total + kernel(filter, (j - c + 0.5) / wide) end
        for j = first, last do
          local k = kernel(filter, (j - c + 0.5) / wide) / total * 2 ^ 22
          sum = sum + line[j + 1] * (k < 0 and math.ceil(k - 0.5) or math.floor(k + 0.5))
        end
        out[i + 1] = math.max(0, math.min(255, math.floor((sum + 2 ^ 21) / 2 ^ 22)))
      end
      return out
    end
    local function reference(values, h, w, to_h, to_w, filter)
      local rows, out = {}, {}
      for y = 1, h do
        for c = 1, 3 do
          local line = {}
          for x = 1, w do line[x] = values[((y - 1) * w + x - 1) * 3 + c] end
          line = pass(line, to_w, filter)
          for x = 1, to_w do rows[((y - 1) * to_w + x - 1) * 3 + c] = line[x] end
        end
      end
      for i = 1, to_w * 3 do
        local column = {}
        for y = 1, h do column[y] = rows[(y - 1) * to_w * 3 + i] end
        column = pass(column, to_h, filter)
        for y = 1, to_h do out[(y - 1) * to_w * 3 + i] = column[y] end
      end
      return out
    end

    local sizes = { { 5, 7, 5, 7 }, { 5, 7, 3, 4 }, { 5, 7, 11, 16 }, { 20, 3, 4, 9 }, { 1, 1, 4, 2 }, { 13, 17, 13, 6 },
      { 13, 17, 6, 17 }, { 3, 40, 1, 1 } }
    for _, s in ipairs(sizes) do
      for _, filter in ipairs { "bicubic", "bilinear" } do
        it(("takes %dx%d to %dx%d, %s, in two rounded passes"):format(s[1], s[2], s[3], s[4], filter), function()
          local values = {}
          for i = 1, s[1] * s[2] * 3 do values[i] = (i * 7919 + i * i * 31) % 256 end
          local t = image.resize(support.tensor(values, { s[1], s[2], 3 }, "uint8"), { s[3], s[4] }, filter)
          assert.same(reference(values, s[1], s[2], s[3], s[4], filter), pixels(t))
        end)
      end
    end

    it("floors the long edge", function()
      local function shape(h, w, edge)
        return select(2, support.values(image.resize(image.canvas(h, w), edge)))
      end
      assert.same({ 256, 449, 3 }, shape(171, 300, 256))
      assert.same({ 331, 256, 3 }, shape(333, 257, 256))
      assert.same({ 8, 8, 3 }, shape(31, 31, 8))
    end)

    it("refuses sizes that make no sense", function()
      local t = image.canvas(2, 2)
      assert.has_error(function() image.resize(t, 0) end)
      assert.has_error(function() image.resize(t, { 0, 5 }) end)
      assert.has_error(function() image.resize(t, { 2 ^ 40, 2 ^ 40 }) end)
      assert.has_error(function() image.resize(t, 5, "nearest") end)
      assert.has_error(function() image.resize(support.tensor({ 1 }, { 1 }), 5) end)
    end)
  end)

  it("crops the middle with a floored offset, and pads with black", function()
    local t = support.tensor({ 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4 }, { 1, 4, 3 }, "uint8")
    assert.same({ 2, 2, 2 }, pixels(image.center_crop(t, 1)))
    assert.same({ 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4, 0, 0, 0, 0, 0, 0 },
      { unpack(pixels(image.center_crop(t, 1, 9))) })
    assert.same({ 4, 4, 4, 0, 0, 0 }, pixels(image.crop(t, 1, 4, 1, 2)))
    assert.same({ 0, 0, 0 }, pixels(image.crop(t, 50, -50, 1, 1)))
  end)

  it("normalises by channel, and mirrors", function()
    local t = support.tensor({ 0, 51, 255, 102, 0, 0 }, { 1, 2, 3 }, "uint8")
    local mean, std = { 0, 0.2, 0.5 }, { 1, 0.5, 0.25 }
    local function near(want, got)
      for i = 1, #want do assert.near(want[i], got[i], 1e-6) end
    end
    near({ 0, 0.4, 0, -0.4, 2, -2 }, pixels(image.normalize(t, { mean = mean, std = std })))
    near({ 0.4, 0, -0.4, 0, -2, 2 }, pixels(image.normalize(t, { mean = mean, std = std, flip = true })))
  end)

  describe("limits", function()
    it("refuses a picture that claims too many pixels before it decodes it", function()
      local huge = "\137PNG\r\n\26\n" .. chunk("IHDR", be(20000) .. be(15000) .. "\8\2\0\0\0") .. chunk("IDAT", "x") .. chunk("IEND", "")
      assert.matches("20000 x 15000 pixels", select(2, image.decode(huge)))
      assert.matches("3 x 2 pixels .* more than the 5", select(2, image.decode(png(3, 2, 8, 0, "\1\2\3\4\5\6"), { max_pixels = 5 })))
      assert.is_truthy(image.decode(png(3, 2, 8, 0, "\1\2\3\4\5\6"), { max_pixels = 6 }))
    end)

    local good = support.read(golden .. "small.png")
    local photo = support.read(golden .. "photo.jpg")
    local damaged = {
      { "an empty file", "", "empty" }, { "text", "hello", "neither PNG, JPEG nor BMP" },
      { "a GIF", "GIF89a\1\0\1\0\0\0\0", "neither PNG, JPEG nor BMP" },
      { "a PNG cut short", good:sub(1, -20), "truncated PNG" },
      { "a PNG cut in the middle", good:sub(1, #good / 2), "truncated PNG" },
      { "a PNG's signature alone", good:sub(1, 8), "truncated PNG" },
      { "a PNG with a flipped bit", good:sub(1, 2000) .. string.char((good:byte(2001) + 1) % 256) .. good:sub(2002),
        "wrong checksum" },
      { "a PNG without data", "\137PNG\r\n\26\n" .. chunk("IHDR", be(2) .. be(2) .. "\8\2\0\0\0") .. chunk("IEND", ""), "damaged PNG" },
      { "a PNG of no width", "\137PNG\r\n\26\n" .. chunk("IHDR", be(0) .. be(2) .. "\8\2\0\0\0") .. chunk("IEND", ""), "damaged PNG" },
      { "a JPEG cut short", photo:sub(1, -3), "truncated JPEG" },
      { "a JPEG cut in the middle", photo:sub(1, #photo / 2), "truncated JPEG" },
      { "a JPEG's first bytes", photo:sub(1, 3), "truncated JPEG" },
      { "a JPEG of nothing", "\255\216\255\217", "damaged JPEG" },
      { "a JPEG whose Huffman table claims too much",
        "\255\216\255\196\0\19\0" .. ("\255"):rep(16) .. "\255\217", "bad Huffman table" },
      { "a BMP cut short", bmp(4, 4, 1):sub(1, -5), "truncated BMP" },
      { "a BMP's first bytes", "BM", "damaged BMP" },
    }
    for _, case in ipairs(damaged) do
      it("reports " .. case[1], function()
        local path = support.write(dir .. "damaged", case[2])
        local t, message = image.load(path)
        assert.is_nil(t)
        assert.matches(path .. ": ", message, 1, true)
        assert.matches(case[3], message, 1, true)
      end)
    end

    it("says why a file cannot be read", function()
      assert.matches("none.png: No such file", select(2, image.load(dir .. "none.png")))
      assert.has_error(function() image.load(dir .. "none.png", { alpa = "drop" }) end)
      assert.has_error(function() image.load(dir .. "none.png", { alpha = "keep" }) end)
    end)
  end)

  describe("writing", function()
    it("reads back the bytes that it wrote", function()
      local t = assert(image.load(golden .. "wide.png"))
      assert.is_true(image.save(dir .. "out.png", t))
      local back = assert(image.load(dir .. "out.png"))
      assert.same(pixels(t), pixels(back))
    end)

    it("cuts off what is pasted over an edge", function()
      local canvas = image.canvas(2, 2, 0)
      image.paste(canvas, image.canvas(2, 2, 9), 2, 0)
      assert.same({ 0, 0, 0, 0, 0, 0, 9, 9, 9, 0, 0, 0 }, pixels(canvas))
      image.paste(canvas, image.canvas(2, 2, 9), 50, -50)
    end)

    it("draws characters apart from one another, inside the canvas", function()
      local seen = {}
      for code = 33, 126 do
        local canvas = image.canvas(8, 6, 255)
        image.text(canvas, 1, 1, string.char(code))
        local key = table.concat(pixels(canvas), ",")
        assert.is_nil(seen[key], "the same glyph twice: " .. string.char(code))
        seen[key] = true
      end
      local canvas = image.canvas(8, 6, 255)
      image.text(canvas, -3, -2, "Wé\1 long text that leaves the canvas", { scale = 3, color = { 1, 2, 3 } })
      image.text(canvas, 900, 900, "far away")
    end)

    it("wraps captions at spaces, and long words anywhere", function()
      assert.same({ "a dog", "on the", "grass" }, image.wrap("a dog on the grass", 6))
      assert.same({ "abc", "def", "g h" }, image.wrap("abcdefg h", 3))
      assert.same({}, image.wrap("  ", 3))
    end)

    it("puts pictures and captions on a sheet", function()
      local sheet = image.sheet({ image.canvas(10, 20, 0), image.canvas(20, 10, 0), image.canvas(5, 5, 0) },
        { "one", "two two two", "three" }, { columns = 2, cell = 30, lines = 2, gap = 2 })
      assert.same({ 2 * (30 + 24 + 2) + 2, 2 * 32 + 2, 3 }, select(2, support.values(sheet)))
    end)

    it("says why it cannot write", function()
      local ok, message = image.save(dir .. "no/such.png", image.canvas(2, 2))
      assert.is_nil(ok)
      assert.matches("such.png: cannot create", message)
      assert.has_error(function() image.save(dir .. "x.png", support.tensor({ 1 }, { 1 })) end)
    end)
  end)

  it("counts its memory, and gives it back", function()
    local state = require("weft.core").state
    local handles, live = tonumber(state.handles), weft.memory().live
    weft.scope(function()
      for _ = 1, 5 do image.resize(image.load(golden .. "small.png"), 10) end
      assert.is_true(weft.memory().live >= live + 5 * (40 * 61 * 3 + 10 * 15 * 3))
    end)
    assert.equal(handles, tonumber(state.handles))
    assert.equal(live, weft.memory().live)
  end)
end)
