local weft = require "weft"
local tiny = require "tests.support.tiny"
local command = require "tests.support.command"

local root, remove
before_each(function()
  root, remove = command.folder()
  assert(os.execute("mkdir " .. root .. "/sub") == 0)
  for _, name in ipairs { "a.png", "b.png", "sub/c.png" } do tiny.picture(root .. "/" .. name, "red", "square", 1) end
end)
after_each(function() remove() end)

local function find(kind) return weft.data.find(root, kind) end
local function shown(list)
  local out = {}
  for i, p in list:each() do
    assert.equal(root .. "/" .. p.name, p.path)
    out[i] = p.name .. "=" .. p.caption
  end
  return table.concat(out, ";")
end
local function write(name, text) tiny.write(root .. "/" .. name, text) end
local function fails(kind, expected)
  local list, message = find(kind)
  assert.is_nil(list)
  assert.truthy(tostring(message):find(expected:gsub("ROOT", (root:gsub("%%", "%%%%"))), 1, true), message)
end

describe("a folder", function()
  it("gives each picture the first line of the text beside it, in order, counting what is left out", function()
    write("a.txt", "  A  red\tsquare. \r\nAnother line\n")
    write("sub/c.txt", "Below")
    write("b.txt", "\n")
    tiny.picture(root .. "/d.png", "blue", "bar")
    local list, counts = assert(find "auto")
    assert.equal("a.png=A red square.;sub/c.png=Below", shown(list))
    assert.same({ without = 1, empty = 1, missing = 0 }, counts)
  end)

  it("without captions is refused with counts, and so is a folder that is none", function()
    fails("auto", "no captioned pictures below ROOT (kind folder): 3 pictures without a caption")
    local list, message = weft.data.find(root .. "/none")
    assert.is_nil(list)
    assert.truthy(message:find(root .. "/none is not a folder; data.root names a folder", 1, true))
    list, message = weft.data.find ""
    assert.is_nil(list)
    assert.truthy(message:find("data.root is not set: pass data.root=FOLDER", 1, true))
    assert.has_error(function() find "zip" end)
  end)
end)

describe("captions.csv", function()
  it("has pictures and captions, quotes where commas are, with a header or without", function()
    write("captions.csv", 'file,caption\r\na.png,"Red, ""so"" red"\r\n\r\nsub/c.png,Plain\nnone.png,Not there\nb.png,\n')
    local list, counts = assert(find "auto")
    assert.equal('a.png=Red, "so" red;sub/c.png=Plain', shown(list))
    assert.same({ without = 0, empty = 1, missing = 1 }, counts)
    write("captions.csv", "a.png,One\nb.png,Two")
    assert.equal("a.png=One;b.png=Two", shown((assert(find "csv"))))
  end)

  it("names the line that is wrong", function()
    write("captions.csv", "file,caption\na.png,One\nb.png\n")
    fails("csv", 'ROOT/captions.csv:3: picture,caption is expected, got "b.png"')
    write("captions.csv", 'a.png,"never closed\n')
    fails("csv", "ROOT/captions.csv:1:")
    write("captions.csv", "none.png,One\n")
    fails("csv", "0 pictures without a caption, 1 captions whose picture is not there")
  end)
end)

describe("captions.jsonl", function()
  it("has an object a line, under any of the usual keys", function()
    write("captions.jsonl", '{"image":"a.png","caption":"One"}\n\n{"file_name":"b.png","text":"Two"}\n{"path":"sub/c.png","caption":"Three"}')
    assert.equal("a.png=One;b.png=Two;sub/c.png=Three", shown((assert(find "auto"))))
  end)

  it("names the line that is wrong, blank lines counted", function()
    write("captions.jsonl", '{"image":"a.png","caption":"One"}\n\n{"image":"b.png"\n')
    fails("jsonl", "ROOT/captions.jsonl:3:")
    write("captions.jsonl", '{"image":"a.png","caption":"One"}\n\n\n{"image":"b.png","caption":null}\n')
    fails("jsonl", "ROOT/captions.jsonl:4: the name of a picture and a caption are expected")
    write("captions.jsonl", "3\n")
    fails("jsonl", "ROOT/captions.jsonl:1: an object with image and caption is expected")
  end)
end)

describe("a COCO file", function()
  it("joins annotations with images", function()
    write("captions.json", [[{"images":[{"id":7,"file_name":"a.png"},{"id":9,"file_name":"sub/c.png"}],
      "annotations":[{"image_id":9,"caption":"Nine"},{"image_id":7,"caption":"Seven"},{"image_id":7,"caption":"Again"}]}]])
    assert.equal("sub/c.png=Nine;a.png=Seven;a.png=Again", shown((assert(find "auto"))))
  end)

  it("says which annotation is wrong", function()
    write("captions.json", [[{"images":[{"id":7,"file_name":"a.png"}],"annotations":[{"image_id":7,"caption":"x"},{"image_id":8,"caption":"y"}]}]])
    fails("coco", "ROOT/captions.json: annotation 2: the name of a picture")
    write("captions.json", "[1]")
    fails("coco", "a COCO file has images and annotations")
    write("captions.json", "{")
    fails("coco", "captions.json")
  end)
end)
