-- tokenizer.lua: byte-level BPE: Hugging Face's tokenizer.json read, written and trained. Ids count
-- from 0, as in vocabularies.
local ffi = require "ffi"
local args = require "weft.args"
local C = require("weft.core").lib

---@class weft.Tokenizer
---@field size integer   ids are 0 .. size - 1
local Tokenizer = {}
Tokenizer.__index = Tokenizer

local function failure() return nil, ffi.string(C.weft_error()) end

local function adopt(handle)
  if handle == nil then return failure() end
  handle = ffi.gc(handle, C.weft_tokenizer_free)
  return setmetatable({ handle = handle, size = tonumber(C.weft_tokenizer_size(handle)) }, Tokenizer)
end

local function text_argument(text, where)
  if type(text) ~= "string" then
    args.raise("%s: a string is expected, got %s", where, args.typename(text))
  end
end

local count = ffi.new "int64_t[1]"

---Ids of a text. Bytes that are not UTF-8 count as U+FFFD. Special tokens in the text are found,
---none are added.
---    tokenizer:encode "a dog</s>"       -- { 68, 326, 2 }
---@param text string
---@return integer[]
function Tokenizer:encode(text)
  text_argument(text, "encode")
  local ids = C.weft_tokenizer_encode(self.handle, text, #text, count)
  if ids == nil then args.fail() end
  local out = {}
  for i = 1, tonumber(count[0]) do out[i] = tonumber(ids[i - 1]) end
  C.weft_buffer_free(ids)
  return out
end

---How many ids encode gives.
---@param text string
---@return integer
function Tokenizer:count(text)
  text_argument(text, "count")
  local ids = C.weft_tokenizer_encode(self.handle, text, #text, count)
  if ids == nil then args.fail() end
  C.weft_buffer_free(ids)
  return tonumber(count[0])
end

---Text of ids; bytes that do not make up UTF-8 become U+FFFD.
---@param ids integer[]
---@param options { skip_special: boolean? }?   true leaves special tokens out
---@return string
function Tokenizer:decode(ids, options)
  local o = args.options(options, { skip_special = false }, "decode")
  if type(ids) ~= "table" then
    args.raise("decode: a table of ids is expected, got %s", args.typename(ids))
  end
  local n = #ids
  local c = ffi.new("int64_t[?]", n + 1)
  for i = 1, n do
    if type(ids[i]) ~= "number" or ids[i] % 1 ~= 0 then
      args.raise("decode: ids[%d]: a whole number is expected, got %s", i, args.typename(ids[i]))
    end
    c[i - 1] = ids[i]
  end
  local text = C.weft_tokenizer_decode(self.handle, c, n, o.skip_special, count)
  if text == nil then args.fail() end
  local out = ffi.string(text, count[0])
  C.weft_buffer_free(text)
  return out
end

---Id of a token as the vocabulary spells it, or nil.
---@param token string
---@return integer?
function Tokenizer:id(token)
  text_argument(token, "id")
  local id = tonumber(C.weft_tokenizer_id(self.handle, token, #token))
  if id < 0 then return nil end
  return id
end

---A token as the vocabulary spells it, or nil.
---@param id integer
---@return string?
function Tokenizer:token(id)
  local text = C.weft_tokenizer_token(self.handle, id, count)
  if text == nil then return nil end
  return ffi.string(text, count[0])
end

---@param id integer
---@return boolean
function Tokenizer:is_special(id) return C.weft_tokenizer_is_special(self.handle, id) end

---Writes tokenizer.json; the file is replaced whole or not at all.
---@param path string
---@return true?, string? message
function Tokenizer:save(path)
  if C.weft_tokenizer_save(self.handle, path) ~= C.WEFT_OK then return failure() end
  return true
end

function Tokenizer:__tostring() return ("tokenizer, %d ids"):format(self.size) end

local tokenizer = {}

---Reads a tokenizer.json.
---    local t = assert(tokenizer.load "tokenizer.json")
---@param path string
---@return weft.Tokenizer?, string? message
function tokenizer.load(path)
  text_argument(path, "tokenizer.load")
  local t, message = adopt(C.weft_tokenizer_load(path))
  return t, message
end

---Reads the text of a tokenizer.json.
---@param text string
---@return weft.Tokenizer?, string? message
function tokenizer.parse(text)
  text_argument(text, "tokenizer.parse")
  local t, message = adopt(C.weft_tokenizer_parse(text, #text, "tokenizer"))
  return t, message
end

---Learns a tokenizer. Ids: special tokens first, then the 256 bytes, then merges by frequency.
---    local t = tokenizer.train(io.lines "captions.txt", { vocab_size = 16384,
---      special_tokens = { "<pad>", "<s>", "</s>", "<image>" } })
---@param texts string[]|fun(): string?   a list, or an iterator as io.lines gives
---@param options { vocab_size: integer, min_count: integer?, special_tokens: string[]? }
---@return weft.Tokenizer
function tokenizer.train(texts, options)
  local o = args.options(options, { vocab_size = args.required, min_count = 0,
    special_tokens = args.none }, "tokenizer.train")
  args.number(o.vocab_size, "tokenizer.train", "vocab_size")
  args.number(o.min_count, "tokenizer.train", "min_count")
  local specials = o.special_tokens or {}
  local c = ffi.new("const char *[?]", #specials + 1)
  for i, s in ipairs(specials) do
    text_argument(s, "tokenizer.train: special_tokens")
    c[i - 1] = s
  end
  local trainer = C.weft_bpe_trainer_new()
  if trainer == nil then args.fail() end
  trainer = ffi.gc(trainer, C.weft_bpe_trainer_free)
  local i = 0
  local function from_list() i = i + 1; return texts[i] end
  for text in type(texts) == "table" and from_list or texts do
    text_argument(text, "tokenizer.train: texts")
    args.check(C.weft_bpe_trainer_feed(trainer, text, #text))
  end
  local t, message = adopt(C.weft_bpe_trainer_finish(trainer, o.vocab_size, o.min_count, c, #specials))
  C.weft_bpe_trainer_free(ffi.gc(trainer, nil))
  if not t then args.raise("tokenizer.train: %s", message) end
  return t
end

return tokenizer
