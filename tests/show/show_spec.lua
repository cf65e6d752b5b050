local weft = require "weft"
local command = require "tests.support.command"
local draw = require "weft.show.draw"
local image = require "weft.io.image"
local page = require "tests.report.page"
local pixels = require "weft.show.pixels"
local tiny = require "tests.support.tiny"

-- A picture of four colours: red, green over blue, white.
local function four(n)
  local out = image.canvas(2 * n, 2 * n, { 255, 0, 0 })
  image.paste(out, image.canvas(n, n, { 0, 255, 0 }), 1, n + 1)
  image.paste(out, image.canvas(n, n, { 0, 0, 255 }), n + 1, 1)
  image.paste(out, image.canvas(n, n, { 255, 255, 255 }), n + 1, n + 1)
  return out
end

describe("what a value looks like", function()
  it("is the picture itself, or an encoder's input taken back", function()
    local picture = four(4)
    assert.same(picture:totable(), (pixels.of(picture)):totable())
    local back = pixels.of(image.normalize(picture))
    assert.is_true((back:to "float32" - picture:to "float32"):abs():max():item() <= 1)
    assert.same({ 8, 8, 3 }, pixels.of(weft.rand { 3, 8, 8 }).shape)
  end)

  it("goes from dark at the lowest number to light at the highest, NaN grey", function()
    local picture, kind = pixels.of(weft.tensor { { 0, 1 }, { 2, 0 / 0 } })
    local t = picture:totable()
    local function light(c) return c[1] + c[2] + c[3] end
    assert.is_true(light(t[1][1]) < light(t[1][2]) and light(t[1][2]) < light(t[2][1]))
    assert.same({ 128, 128, 128 }, t[2][2])
    assert.equal("0 .. 2", kind)
  end)

  it("is a sheet of many, and an error for none", function()
    assert.is_true(pixels.of(weft.rand { 5, 3, 16, 16 }).shape[2] > 100)
    assert.is_true(pixels.of(weft.rand { 2, 5, 7, 7 }).ndim == 3)
    assert.error_matches(function() pixels.of(weft.zeros { 0, 3 }) end, "is empty")
    assert.error_matches(function() pixels.of {} end, "a tensor or the path")
  end)
end)

describe("drawing", function()
  it("puts two rows in a line of half blocks, each colour told once", function()
    local text = draw.blocks(four(1), 2, 1, "true")
    assert.equal("\27[38;2;255;0;0m\27[48;2;0;0;255m▀\27[38;2;0;255;0m\27[48;2;255;255;255m▀\27[0m\n", text)
    assert.truthy(draw.blocks(four(1), 2, 1, "256"):find("38;5;196", 1, true))
  end)

  it("fits into the columns and rows there are", function()
    local text = draw.blocks(image.canvas(300, 600), 40, 8, "true")
    local lines = select(2, text:gsub("\n", ""))
    assert.is_true(lines <= 8)
    for line in text:gmatch "[^\n]+" do assert.is_true(select(2, line:gsub("▀", "")) <= 40) end
  end)

  it("is light and dark characters without colours", function()
    assert.equal(" @\n", draw.text(image.canvas(2, 1, 0) and (function()
      local p = image.canvas(2, 2, 0)
      image.paste(p, image.canvas(2, 1, 255), 1, 2)
      return p
    end)(), 20, 10))
  end)

  it("sends kitty a PNG in pieces that come back as they were", function()
    local bytes = ("\137PNG\0\255" .. ("x%d"):rep(3000, ",")):sub(1, 9000)
    local text, data, last = draw.kitty(bytes), {}, nil
    for more, piece in text:gmatch "\27_G[^;]*m=(%d);([^\27]*)\27\\" do
      assert.is_true(#piece <= 4096)
      data[#data + 1] = piece
      last = more
    end
    assert.equal("0", last)
    assert.truthy(text:find "^\27_Ga=T,f=100,m=1;")
    local _, decoded = command.run("base64 -d", table.concat(data))
    assert.equal(bytes, decoded)
  end)

  it("chooses the colours that suit a picture where a terminal has few", function()
    local palette = require "weft.show.palette"
    local picture = image.canvas(64, 64, 0)
    local p, n = picture:data(), 64 * 64
    for at = 0, n - 1 do p[3 * at], p[3 * at + 1], p[3 * at + 2] = 4 * (at % 64), math.floor(at / 64), 200 end
    local colours, index = palette.of(p, n, 256)
    assert.is_true(#colours <= 256 and #colours > 100, #colours)
    local far = 0
    for at = 0, 3 * (n - 1), 3 do
      local c = colours[index(p[at], p[at + 1], p[at + 2])]
      for k = 1, 3 do far = math.max(far, math.abs(c[k] - p[at + k - 1])) end
    end
    assert.is_true(far <= 8, far)  -- of a cube of 216 colours 25
    -- few colours are what they are
    for at = 0, 3 * n - 3, 3 do p[at], p[at + 1], p[at + 2] = at % 2 == 0 and 255 or 3, 225, 7 end
    colours = palette.of(p, n, 256)
    table.sort(colours, function(a, b) return a[1] < b[1] end)
    assert.same({ { 3, 225, 7 }, { 255, 225, 7 } }, colours)
    assert.equal(4, #palette.of(image.canvas(2, 2, 0):data(), 4, 4) + 3)
  end)

  it("writes sixels that decode to the picture", function()
    local text = draw.sixel(four(6), 12, 12)
    local body = assert(text:match '^\27Pq"1;1;12;12(.*)\27\\\n$')
    local colors, at, x, y, seen, now = {}, 1, 0, 0, {}, nil
    while at <= #body do
      local c = body:sub(at, at)
      if c == "#" then
        local n, r, g, b, stop = body:match("^#(%d+);2;(%d+);(%d+);(%d+)()", at)
        if n then colors[n] = { tonumber(r), tonumber(g), tonumber(b) } else n, stop = body:match("^#(%d+)()", at) end
        now, at = colors[n], stop
      elseif c == "$" then x, at = 0, at + 1
      elseif c == "-" then x, y, at = 0, y + 6, at + 1
      else
        local count, char, stop = body:match("^!(%d+)(.)()", at)
        if not count then count, char, stop = 1, c, at + 1 end
        for _ = 1, tonumber(count) do
          for dy = 0, 5 do
            if bit.band(char:byte() - 63, 2 ^ dy) ~= 0 then seen[y + dy] = seen[y + dy] or {} seen[y + dy][x] = now end
          end
          x = x + 1
        end
        at = stop
      end
    end
    assert.same({ 100, 0, 0 }, seen[0][0])
    assert.same({ 0, 100, 0 }, seen[5][11])
    assert.same({ 0, 0, 100 }, seen[11][0])
    assert.same({ 100, 100, 100 }, seen[6][6])
    for row = 0, 11 do for column = 0, 11 do assert.is_table(seen[row][column]) end end
  end)
end)

describe("weft.show and weft.plot", function()
  local folder, remove
  before_each(function() folder, remove = command.folder() end)
  after_each(function() remove() end)

  local function lines_of(code, environment)
    local status, out, err = command.run((environment or "") .. " bin/weft repl", code)
    assert.equal(0, status, err)
    local list = {}
    for line in out:gmatch "[^\n]+" do list[#list + 1] = line end
    return list, out
  end

  it("write a PNG where they are told to", function()
    weft.show(four(3), { path = folder .. "/x.png" })
    assert.same(four(3):totable(), assert(image.load(folder .. "/x.png")):totable())
  end)

  it("draw in characters into a pipe, and in no colour", function()
    local _, out = lines_of "weft.show(weft.arange(64):reshape(8, 8))\nweft.plot(weft.arange(30) ^ 2)\n"
    assert.is_nil(out:find("\27", 1, true))
    assert.truthy(out:find("0 .. 63", 1, true))
    assert.truthy(out:find("841", 1, true))
  end)

  it("take the protocol that WEFT_SHOW names", function()
    local code = "weft.show(weft.ones { 4, 4 })\n"
    assert.truthy(select(2, lines_of(code, "WEFT_SHOW=kitty")):find("\27_Ga=T", 1, true))
    assert.truthy(select(2, lines_of(code, "WEFT_SHOW=sixel")):find("\27Pq", 1, true))
    assert.truthy(select(2, lines_of(code, "WEFT_SHOW=blocks")):find("▀", 1, true))
  end)

  it("plot a rising line from the lower left to the upper right", function()
    local list = lines_of "weft.plot(weft.arange(100), { columns = 40, rows = 6 })\n"
    assert.truthy(list[1]:find "^ *99│ +[^ ]+$")
    assert.truthy(list[6]:find "^ *0│[^ ]")
    assert.is_true(#list[1]:gsub("[\128-\191]", "") <= 40)
  end)

  it("count values in a histogram", function()
    local list = lines_of "weft.plot({ 0, 0, 0, 1, 0/0 }, { kind = 'histogram', bins = 2, columns = 40 })\n"
    assert.truthy(list[1]:find "█ 3$")
    assert.truthy(list[2]:find " 1$")
    assert.truthy(list[3]:find "5 values, 1 not finite")
  end)

  it("write SVG that is well-formed and holds every point", function()
    weft.plot({ a = { 1, 4, 9 }, b = { x = { 1, 3 }, y = { 2, 5 } } }, { path = folder .. "/c.svg" })
    weft.plot(weft.randn { 4, 5, 6 }, { path = folder .. "/h.svg", bins = 7 })
    weft.plot(weft.randn { 3, 5 }, { path = folder .. "/m.svg" })
    local function read(name) return page.parse("<!DOCTYPE html>\n" .. tiny.read(folder .. "/" .. name):gsub("^<%?xml[^>]*>\n", "")) end
    local paths = page.all(read "c.svg", "path")
    assert.equal(2, #paths)
    assert.equal(3, select(2, paths[1].attributes.d:gsub("[ML]", "")))
    assert.equal(7, #page.all(read "h.svg", "rect"))
    assert.equal(15, #page.all(read "m.svg", "rect"))
  end)

  it("refuse what they can't draw, saying what they take", function()
    assert.error_matches(function() weft.plot "x" end, "a tensor, a list of numbers, or curves by name")
    assert.error_matches(function() weft.plot({ 1 }, { path = "x.png" }) end, "an .svg is expected")
    assert.error_matches(function() weft.plot({ 1 }, { kind = "pie" }) end, "kind")
    assert.error_matches(function() weft.plot { a = { x = { 1 }, y = { 1, 2 } } } end, "1 places and 2 values")
    assert.error_matches(function() weft.show "nowhere.png" end, "nowhere.png")
  end)
end)

describe("a terminal", function()
  it("is asked for its size, also after a resize #slow", function()  -- script(1) starts no sanitized library
    local script = [[
      stty cols 80 rows 20; luajit -e 'require "weft" print("A", require("weft.terminal").size())'
      stty cols 133 rows 40; luajit -e 'require "weft" print("B", require("weft.terminal").size())'
    ]]
    local folder, remove = command.folder()
    tiny.write(folder .. "/size.sh", script)
    local _, out = command.run(("LD_PRELOAD= script -qec 'sh %s/size.sh' /dev/null"):format(folder))
    remove()
    assert.truthy(out:find("A\t80\t20", 1, true), out)
    assert.truthy(out:find("B\t133\t40", 1, true), out)
  end)
end)
