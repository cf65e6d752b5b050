-- data: captioned pictures and plain text, ready to train on.
local A = require "weft.args"
local files = require "weft.files"
local find = require "weft.data.pairs"
local split = require "weft.data.split"
local Dataset = require "weft.data.captioned"
local augment = require "weft.data.augment"
local rows_of = require "weft.data.rows"
local C = require("weft.core").lib

local M = { find = find.find, split = split.by_caption, varies = augment.varies }

local SPECIAL = { "<pad>", "<s>", "</s>", "<image>" }

-- A tokenizer trained on the training captions, unless one is given or named.
local function tokenizer_of(o, rows, text)
  local tokenizers = require "weft.io.tokenizer"
  local t = o.given
  if not t and o.tokenizer ~= "" then
    local message
    t, message = tokenizers.load(o.tokenizer)
    if not t then A.raise("data.tokenizer: %s", message) end
  end
  if not t then
    local caption, i, n = rows_of.reader(rows, "caption"), 0, rows_of.size(rows)
    local function each_line()
      i = i + 1
      if i <= n then return caption(i) end
      return text and text[i - n]
    end
    t = tokenizers.train(each_line, { vocab_size = o.vocab, special_tokens = SPECIAL })
  end
  local ids = { pad = t:id "<pad>", bos = t:id "<s>", eos = t:id "</s>" }
  for name, id in pairs { pad = ids.pad or false, bos = ids.bos or false, eos = ids.eos or false } do
    if not id then A.raise("the tokenizer has no %s token; <pad>, <s> and </s> must be three ids of their own", name) end
  end
  if ids.pad == ids.bos or ids.pad == ids.eos or ids.bos == ids.eos then
    A.raise("the tokenizer's <pad>, <s> and </s> must be three different ids, got %d, %d and %d", ids.pad, ids.bos, ids.eos)
  end
  return t, ids
end

-- BOS, tokens, EOS; EOS survives the cut.
local function encode(t, special, caption, length)
  local ids = t:encode(caption)
  local out = { special.bos }
  for i = 1, math.min(#ids, length - 2) do out[#out + 1] = ids[i] end
  out[#out + 1] = special.eos
  return out
end

-- Rows learn their captions' ids, which are made when they are asked for; how many captions are cut, and the
-- most tokens of one.
local function tokenize(rows, t, special, length)
  local cut, longest = 0, 0
  rows:set_tokens(function(caption) return (encode(t, special, caption, length)) end, function(caption)
    local n = t:count(caption)
    cut, longest = cut + (n > length - 2 and 1 or 0), math.max(longest, n)
    return math.min(n + 2, length)
  end, length)
  return cut, longest
end

-- Lines of the plain text, and a note on them.
local function text_lines(c)
  if c.text == "" then return nil end
  local text, message = files.read(c.text)
  if not text then error("data.text: " .. message, 0) end
  local lines, empty = {}, 0
  for line in text:gmatch "[^\n]+" do
    line = line:gsub("%s+", " "):gsub("^ ", ""):gsub(" $", "")
    if line == "" then empty = empty + 1 else lines[#lines + 1] = line end
  end
  if #lines == 0 then error(("data.text: %s has no line of text"):format(c.text), 0) end
  return lines, ("text: %d lines of %s, %d blank ones left out"):format(#lines, c.text, empty)
end

local function options_of(c, t, special)
  local image = require "weft.io.image"
  return { size = c.size, resize = c.resize, fit = c.fit, length = c.length, pad = special.pad, vocab = t.size, threads = c.threads, cache = c.cache,
    flip = c.flip, random_crop = c.random_crop, vary_after = c.vary_after, mean = image.mean, std = image.std }
end

-- Gives each row its picture's id, by what its file holds or by its path, and its caption's; returns how many
-- there are of each.
local function identify(rows, by)
  local n, message
  if by == "path" then n = rows:number_names() else n, message = rows:number_pictures() end
  if not n then error("data: " .. message, 0) end
  return n, rows:number_captions()
end

---Captioned pictures for a recipe: { train, test, tokenizer, special, notes, save }.
---@param c table  the recipe's data section: kind, root, held_out, length, vocab, tokenizer, size, resize, fit
---  ("crop": short edge, then the middle; "stretch": both sides), threads, cache, flip, limit, text (a file of plain text, one utterance a line),
---  identify ("content": pictures are the same whose files are, so each is read at the start; "path": whose paths are,
---  so that none is opened before it is needed: for lists of millions)
---@param o table  seed, tokenizer (a trained one, when a run is opened), dir
function M.captioned(c, o)
  c = A.options(c, { kind = "auto", root = "", held_out = 0.2, length = 40, vocab = 4096, tokenizer = "", size = 224, resize = 256,
    fit = "crop", threads = 2, cache = 256, flip = false, random_crop = 1, vary_after = 0, limit = 0, text = "", identify = "content" }, "data")
  if c.length < 3 then A.raise("data.length: at least 3 tokens are expected (<s>, one, </s>), got %d", c.length) end
  if not (c.held_out >= 0 and c.held_out < 1) then A.raise("data.held_out: a share from 0 to below 1 is expected, got %g", c.held_out) end
  if c.fit ~= "crop" and c.fit ~= "stretch" then A.choice(c.fit, { crop = 1, stretch = 1 }, "data", "fit") end
  if c.identify ~= "content" and c.identify ~= "path" then A.choice(c.identify, { content = 1, path = 1 }, "data", "identify") end
  local rows, counts = find.find(c.root, c.kind, c.identify == "path")
  if not rows then error("data: " .. counts, 0) end
  if c.limit > 0 then rows:cut(c.limit) end
  local n_images, n_captions = identify(rows, c.identify)
  C.weft_empty_cache(C.WEFT_CPU)  -- of many rows, what numbering them took is much
  local train, test = split.by_caption(rows, c.held_out, o.seed)
  C.weft_empty_cache(C.WEFT_CPU)
  if o.dir and not o.tokenizer then
    local saved = o.dir .. "/tokenizer.json"
    if files.exists(saved) then o.tokenizer = assert(require("weft.io.tokenizer").load(saved)) end
  end
  local lines, text_notes = text_lines(c)
  local t, special = tokenizer_of({ given = o.tokenizer, tokenizer = c.tokenizer, vocab = c.vocab }, train, lines)
  local cut, longest = tokenize(rows, t, special, c.length)
  local options = options_of(c, t, special)
  local train_options = options_of(c, t, special)
  if lines then
    train_options.text = {}
    for i, line in ipairs(lines) do train_options.text[i] = encode(t, special, line, c.length) end
  end
  local data = { train = Dataset.new(train, train_options), test = Dataset.new(test, options), tokenizer = t, special = special,
    vocab = t.size, length = c.length, size = c.size }
  data.notes = {
    ("pictures: %d (%d distinct%s), %d to train on, %d held out by groups of equal captions; "
      .. "left out: %d without a caption, %s")
      :format(rows:size(), n_images, c.identify == "path" and " paths" or "", train:size(), test:size(), counts.without,
        c.identify == "path" and "those not there once they are met" or counts.missing .. " not there"),
    ("captions: %.1f %% cut at %d tokens, longest %d, %d empty; %d distinct; vocabulary %d")
      :format(100 * cut / rows:size(), c.length, longest, counts.empty, n_captions, t.size),
    c.fit == "stretch" and ("preprocessing: both sides to %d bicubic antialiased, whatever the shape; alpha on white"):format(c.size)
      or ("preprocessing: short edge %d bicubic antialiased, crop %d: keeps %.0f %% of a square picture; alpha on white")
        :format(c.resize, c.size, 100 * math.min(1, c.size / c.resize) ^ 2),
  }
  data.notes[#data.notes + 1] = augment.note(c)
  data.notes[#data.notes + 1] = text_notes
  function data:save(dir)
    local ok, message = self.tokenizer:save(dir .. "/tokenizer.json")
    if ok then
      ok, message = require("weft.io.json").write(dir .. "/data.json", { pictures = train:size(), distinct = self.train:count_pictures(),
        held_out = test:size(), length = c.length, size = c.size, resize = c.resize, fit = c.fit, mean = options.mean, std = options.std, vocab = t.size,
        preprocessing = require("weft.io.preprocess").of_run(options):hash() })
    end
    if not ok then error(message, 0) end
  end
  return data
end

---What a run's model needs of its data when the pictures themselves are not wanted: the tokenizer and
---the sizes that the run recorded.
---@param dir string
function M.recorded(dir)
  local json = require "weft.io.json"
  local d, message = json.read(dir .. "/data.json")
  if not d then error(("%s: %s"):format(dir, message), 0) end
  local t, special = tokenizer_of({ tokenizer = dir .. "/tokenizer.json" })
  local options = { size = d.size, resize = d.resize, fit = d.fit, length = d.length, pad = special.pad, threads = 1, cache = 0,
    flip = false, random_crop = 1, vary_after = 0, mean = d.mean, std = d.std }
  local function set(n, distinct)
    local part = Dataset.new({}, options)
    function part:size() return n end
    function part:count_pictures() return distinct end
    return part
  end
  return { train = set(d.pictures, d.distinct or d.pictures), test = set(d.held_out, d.held_out),
    tokenizer = t, special = special, vocab = t.size, length = d.length, size = d.size }
end

---Every captioned picture of a place, prepared and tokenized as a run's were: a set to score.
---@param run table  of weft.open
---@param place string  a folder, or a list's file
function M.all_of(run, place)
  local rows, counts = find.find(place, "auto")
  if not rows then error("data: " .. counts, 0) end
  identify(rows, "content")
  local data = run.data
  tokenize(rows, data.tokenizer, data.special, data.length)
  local options = {}
  for k, v in pairs(data.test.options) do options[k] = v end
  return Dataset.new(rows, options)
end

---Token ids of a text as this data encodes captions.
function M.encode(data, caption)
  return (encode(data.tokenizer, data.special, caption, data.length))
end

return M
