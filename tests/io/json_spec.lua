local json = require "weft.io.json"
local support = require "tests.io.support"

describe("json", function()
  local dir
  setup(function() dir = support.directory() end)
  teardown(support.cleanup)

  it("keeps arrays, objects, null, empty ones and text with NUL", function()
    local t = assert(json.decode '{"a":[1,2.5,null,{}],"b":[],"c":{},"s":"\\u0000x\\"\\n","t":true,"f":false}')
    assert.equal(json.null, t.a[3])
    assert.equal("\0x\"\n", t.s)
    assert.is_true(t.t)
    assert.is_false(t.f)
    assert.equal('{"a": [1, 2.5, null, {}], "b": [], "c": {}, "f": false, "s": "\\u0000x\\"\\n", "t": true}',
      json.encode(t))
  end)

  it("reads what it writes, indented and sorted", function()
    local text = json.encode({ b = { 1, { x = "é" } }, a = json.array {} }, { indent = 2 })
    assert.equal('{\n  "a": [],\n  "b": [\n    1,\n    {\n      "x": "é"\n    }\n  ]\n}', text)
    assert.equal(text, json.encode(json.decode(text), { indent = 2 }))
  end)

  it("writes numbers so that they read back as the same double", function()
    for _, v in ipairs { 0.1, 1 / 3, 1e300, 5e-324, 2 ^ 53 - 1, -2 ^ 53 + 1, 2 ^ 60, 123456789.125, 1e21 } do
      assert.equal(v, json.decode(json.encode(v)))
    end
    assert.equal("9007199254740991", json.encode(2 ^ 53 - 1))
    assert.equal("0.1", json.encode(0.1))
    assert.equal("3", json.encode(3.0))
    assert.equal("-9007199254740993", json.encode(-9007199254740993LL))
    assert.equal(-math.huge, 1 / json.decode(json.encode(-0.0)))
  end)

  it("reads integers beyond 64 bits as doubles", function()
    assert.equal(1e30, json.decode "1000000000000000019884624838656")
  end)

  local refused = {
    ["a truncated text"] = "[1,2", ["a duplicate key"] = '{"a":1,"a":2}', ["NaN"] = "[NaN]",
    ["bytes that are not UTF-8"] = '"\255"', ["trailing text"] = "1 2", ["nothing"] = "",
    ["a number too large"] = "1e999", ["a lone surrogate"] = '"\\ud800"', ["a comma too many"] = "[1,]",
    ["a nest too deep"] = ("["):rep(100000),
  }
  for what, text in pairs(refused) do
    it("refuses " .. what, function()
      local value, message = json.decode(text)
      assert.is_nil(value)
      assert.matches("not JSON: line %d", message)
    end)
  end

  it("names the place of what JSON cannot hold", function()
    local function refuses(message, value)
      local ok, got = pcall(json.encode, value)
      assert.is_false(ok)
      assert.matches(message, got)
    end
    refuses("value%.a%[2%] is nan", { a = { 1, 0 / 0 } })
    refuses("value is inf", math.huge)
    refuses("value%.f is a function", { f = print })
    refuses("value%.s: the string is not UTF%-8 at byte 3", { s = "ab\200" })
    refuses("the key x does not belong in an array of 1", { 1, x = 2 })
    refuses("the key 3 is a number", { [3] = 1 })
    local cycle = {}
    cycle.a = cycle
    refuses("more than 500 levels deep", cycle)
  end)

  it("reads and writes files, and says why not", function()
    assert.is_true(json.write(dir .. "a.json", { x = { 1, 2 } }))
    assert.same({ 1, 2 }, { unpack(json.read(dir .. "a.json").x) })
    local value, message = json.read(dir .. "absent.json")
    assert.is_nil(value)
    assert.matches("absent.json: No such file", message)
    value, message = json.write(dir .. "no/such/place.json", {})
    assert.is_nil(value)
    assert.matches("place.json: cannot create a file beside it: No such file", message)
    support.write(dir .. "bad.json", "{")
    assert.matches("bad.json: not JSON", select(2, json.read(dir .. "bad.json")))
    assert.matches("not a regular file", select(2, json.read(dir)))
  end)

  it("leaves the old file alone when it cannot write", function()
    json.write(dir .. "old.json", { 1 })
    pcall(json.write, dir .. "old.json", { 0 / 0 })
    assert.equal("[\n  1\n]\n", support.read(dir .. "old.json"))
  end)

  it("keeps the point of a number that was marked", function()
    assert.equal('{"a": 1.0, "b": 1, "c": 0.5, "d": 1e+300}',
      json.encode { a = json.float(1), b = 1, c = json.float(0.5), d = json.float(1e300) })
  end)
end)
