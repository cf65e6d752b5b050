local tokenizer = require "weft.io.tokenizer"
local json = require "weft.io.json"
local support = require "tests.io.support"

local golden = support.golden .. "tokenizer/"

-- A small file to alter: three letters, a space, two merges.
local function small()
  return {
    added_tokens = json.array { { id = 6, content = "<s>", special = true } },
    pre_tokenizer = { type = "ByteLevel", add_prefix_space = false, use_regex = true },
    decoder = { type = "ByteLevel" },
    model = { type = "BPE", vocab = { a = 0, b = 1, c = 2, ["Ġ"] = 3, ab = 4, abc = 5 },
      merges = json.array { "a b", "ab c" } },
  }
end
local function parse(t) return tokenizer.parse(json.encode(t)) end

describe("tokenizer", function()
  local dir
  setup(function() dir = support.directory() end)
  teardown(support.cleanup)

  it("encodes and decodes awkward strings as Hugging Face does", function()
    local t = assert(tokenizer.load(golden .. "tokenizer.json"))
    local words = 0
    for _ in pairs(json.read(golden .. "tokenizer.json").model.vocab) do words = words + 1 end
    assert.equal(words, t.size)
    for _, case in ipairs(json.read(golden .. "cases.json")) do
      assert.same({ unpack(case.ids) }, t:encode(case.text), case.text)
      assert.equal(case.decoded, t:decode(case.ids))
    end
  end)

  it("knows the letters and digits of Unicode 15 and 16, as Hugging Face's tokenizers do", function()
    local t = assert(tokenizer.load(golden .. "tokenizer.json"))
    local tail = t:encode "'s"
    assert.equal(1, #tail)  -- after a letter or a digit; after any other sign the apostrophe goes with that
    for _, sign in ipairs { "\240\177\141\144", "\240\177\144\133", "\234\159\154", "\240\145\189\144", "\240\157\139\128" } do
      local expected = t:encode(sign)
      expected[#expected + 1] = tail[1]
      assert.same(expected, t:encode(sign .. "'s"))
    end
    assert.is_true(#t:encode "\240\159\144\142's" > #t:encode "\240\159\144\142" + 1)
  end)

  it("saves the bytes that Hugging Face saves", function()
    local t = tokenizer.load(golden .. "tokenizer.json")
    assert.is_true(t:save(dir .. "t.json"))
    assert.equal(support.read(golden .. "tokenizer.json"), support.read(dir .. "t.json"))
  end)

  it("merges by rank, not from left to right", function()
    local t = assert(parse(small()))
    assert.same({ 5, 3, 4, 0 }, t:encode "abc aba")
    local other = small()
    other.model.vocab.bc = 7
    other.model.merges = json.array { json.array { "b", "c" }, json.array { "a", "b" } }
    assert.same({ 0, 7 }, parse(other):encode "abc")
  end)

  it("cuts special tokens out first, the longest of them", function()
    local s = small()
    s.added_tokens[2] = { id = 7, content = "<s>a", special = false }
    local t = assert(parse(s))
    assert.same({ 0, 6, 1, 7, 6 }, t:encode "a<s>b<s>a<s>")
    assert.equal("a<s>b", t:decode { 0, 6, 1 })
    assert.equal("ab", t:decode({ 0, 6, 1 }, { skip_special = true }))
    assert.is_true(t:is_special(6))
    assert.is_false(t:is_special(7))
    assert.equal(6, t:id "<s>")
    assert.equal("abc", t:token(5))
    assert.is_nil(t:id "abcd")
    assert.is_nil(t:token(99))
  end)

  it("strips space around tokens that ask for it, and heeds whole words", function()
    local s = small()
    s.added_tokens = json.array {
      { id = 6, content = "<l>", lstrip = true }, { id = 7, content = "<r>", rstrip = true },
      { id = 8, content = "ca", single_word = true } }
    local t = assert(parse(s))
    assert.same({ 0, 6, 3, 0 }, t:encode "a  <l> a")
    assert.same({ 0, 3, 7, 0 }, t:encode "a <r>  a")
    assert.same({ 8, 3, 5, 0 }, t:encode "ca abca")
    s.model.unk_token = "b"
    assert.same({ 2, 4, 1 }, parse(s):encode "caé") -- é goes on with the word
    assert.same({ 8, 1, 1, 1 }, parse(s):encode "ca→")
  end)

  it("puts a space before words where the file says so", function()
    local s = small()
    s.pre_tokenizer.add_prefix_space = true
    assert.same({ 3, 0 }, parse(s):encode "a")
    assert.same({ 3, 0, 6, 3, 1 }, parse(s):encode "a<s>b")
  end)

  it("takes the unknown token, or nothing, for bytes that the vocabulary lacks", function()
    local s = small()
    assert.same({ 4 }, parse(s):encode "axb")
    s.model.unk_token = "c"
    assert.same({ 0, 2, 1 }, parse(s):encode "axb")
  end)

  it("replaces bytes that are not UTF-8, going in and coming out", function()
    local t = tokenizer.load(golden .. "tokenizer.json")
    local bad = { ["a\255b"] = "a\239\191\189b", ["\226\130x"] = "\239\191\189x",
      ["\237\160\128"] = ("\239\191\189"):rep(3), ["\240\159\144"] = "\239\191\189", ["\192\128"] = ("\239\191\189"):rep(2) }
    for given, clean in pairs(bad) do
      assert.same(t:encode(clean), t:encode(given))
      assert.equal(clean, t:decode(t:encode(given)))
    end
    local half = t:encode "北"
    half[#half] = nil
    assert.matches("\239\191\189", t:decode(half))
  end)

  it("names the id that is out of range", function()
    local t = tokenizer.load(golden .. "tokenizer.json")
    local ok, message = pcall(t.decode, t, { 1, t.size })
    assert.is_false(ok)
    assert.matches(("token %d at position 2 outside 0..%d"):format(t.size, t.size - 1), message)
  end)

  it("takes 100,000 equal letters", function()
    local t = assert(parse(small()))
    assert.equal(100000, #t:encode(("a"):rep(100000)))
    assert.same({ 5, 5 }, { unpack(t:encode(("abc"):rep(50000)), 49999) })
  end)

  describe("training", function()
    -- Ids of equal frequency follow the ids of the pair.
    it("learns the most frequent pair first, of equals the smaller ids", function()
      local t = tokenizer.train({ "abab abab", "cdcd" }, { vocab_size = 263, special_tokens = { "<pad>" } })
      assert.equal(0, t:id "<pad>")
      assert.equal(1, t:id "!")
      assert.equal(257, t:id "ab")
      assert.equal(258, t:id "cd")
      assert.equal(259, t:id "abab")
      assert.equal(262, t.size)
    end)

    it("does not depend on the order of the texts", function()
      local one = tokenizer.train({ "the cat sat", "on the mat", "naïve 北京" }, { vocab_size = 300 })
      local two = tokenizer.train({ "naïve 北京", "on the mat", "the cat sat" }, { vocab_size = 300 })
      one:save(dir .. "one.json")
      two:save(dir .. "two.json")
      assert.equal(support.read(dir .. "one.json"), support.read(dir .. "two.json"))
    end)

    it("brings any bytes back", function()
      local t = tokenizer.train({ "hello world" }, { vocab_size = 262 })
      local text = "hello \0 Żółć 🐎 \r\n world"
      assert.equal(text, t:decode(t:encode(text)))
    end)

    it("stops below the least count", function()
      local t = tokenizer.train({ "ab ab cd" }, { vocab_size = 300, min_count = 2 })
      assert.is_truthy(t:id "ab")
      assert.is_nil(t:id "cd")
    end)

    it("refuses what it cannot do", function()
      assert.has_error(function() tokenizer.train({ "a" }, { vocab_size = 100 }) end)
      assert.has_error(function() tokenizer.train({ "a" }, { vocab_size = 300, special_tokens = { "<s>", "<s>" } }) end)
      assert.has_error(function() tokenizer.train({ "a" }, {}) end)
      assert.has_error(function() tokenizer.train({ 1 }, { vocab_size = 300 }) end)
    end)
  end)

  local function without(change)
    local s = small()
    change(s)
    return s
  end
  local refused = {
    { "another model", without(function(s) s.model.type = "WordPiece" end), "WordPiece" },
    { "a normaliser", without(function(s) s.normalizer = { type = "NFC" } end), "NFC" },
    { "another pre-tokenizer", without(function(s) s.pre_tokenizer.type = "Whitespace" end), "Whitespace" },
    { "another decoder", without(function(s) s.decoder.type = "WordPiece" end), "decoder 'WordPiece'" },
    { "dropout", without(function(s) s.model.dropout = 0.1 end), "dropout" },
    { "byte fallback", without(function(s) s.model.byte_fallback = true end), "byte_fallback" },
    { "a missing vocabulary", without(function(s) s.model.vocab = nil end), "no vocabulary" },
    { "missing merges", without(function(s) s.model.merges = nil end), "no merges" },
    { "a merge of strangers", without(function(s) s.model.merges[1] = "x y" end), "merge 0 of 'x' and 'y'" },
    { "a merge of one", without(function(s) s.model.merges[1] = "ab" end), "merge 0 is not a pair" },
    { "two tokens with one id", without(function(s) s.model.vocab.b = 0 end), "share the id 0" },
    { "a negative id", without(function(s) s.model.vocab.b = -1 end), "no valid id" },
    { "an id that is no number", without(function(s) s.model.vocab.b = "1" end), "no valid id" },
    { "an added token without content", without(function(s) s.added_tokens[1].content = nil end), "added token 0" },
    { "an added token with two ids", without(function(s) s.added_tokens[1].content = "a" end), "'a' has the ids 0 and 6" },
    { "an empty object", json.object {}, "only BPE" },
    { "an array", json.array {}, "only BPE" },
  }
  for _, case in ipairs(refused) do
    it("refuses " .. case[1], function()
      local t, message = parse(case[2])
      assert.is_nil(t)
      assert.matches(case[3], message, 1, true)
    end)
  end

  it("refuses damaged files by name", function()
    local bytes = support.read(golden .. "tokenizer.json")
    support.write(dir .. "half.json", bytes:sub(1, #bytes / 2))
    assert.matches("half.json: not JSON", select(2, tokenizer.load(dir .. "half.json")))
    assert.matches("none.json: No such file", select(2, tokenizer.load(dir .. "none.json")))
  end)
end)
