-- new.lua: `weft new`: a recipe of one's own, over the parts that came with weft, its data section filled
-- from a folder of captioned pictures.
local M = {
  summary = "write a recipe of your own, for your pictures",
  usage = "NAME [--data PLACE]",
  about = "Writes NAME.lua: the quickstart's settings, sizes that fit your pictures, and places to change the model.\n"
    .. "PLACE is a folder of NAME.png beside NAME.txt, a folder with captions.csv, captions.jsonl or captions.json\n"
    .. "(COCO), or one such file. What it is is recognised and said. docs/how-to.md has ten changes to make first.",
  options = { { "data", "the pictures and their captions", value = "PLACE" } },
  examples = { "weft new stamps --data ~/pictures/stamps", "weft new coco --data /data/coco/annotations/captions_val2017.json" },
}

local FORMS = {
  folder = "pictures, each with a .txt beside it", csv = "captions.csv: picture,caption", jsonl = "captions.jsonl: an object a line",
  coco = "COCO: images and annotations",
}

-- Sections and keys in the order of the recipes; others follow by name.
local ORDER = { "seed", "encoder", "lora", "compress", "language", "fusion", "memory", "itc", "itm", "weights", "warmup_epochs", "epochs",
  "phase_switch", "batch", "accumulate", "lr", "lora_lr", "head_lr", "lora_plus_ratio", "weight_decay", "betas", "eps", "clip", "warmup_steps",
  "lr_floor", "average", "features", "data", "checkpoint_every", "keep_checkpoints", "log_every" }
local INSIDE = { "kind", "root", "pretrained", "hidden", "width", "rank", "alpha", "layers", "ff", "heads", "image", "patch", "size", "resize",
  "fit", "length", "vocab", "enabled" }

local function by_order(t, order)
  local place, keys = {}, {}
  for i, key in ipairs(order) do place[key] = i end
  for key in pairs(t) do keys[#keys + 1] = key end
  table.sort(keys, function(a, b)
    local x, y = place[a] or 1000, place[b] or 1000
    if x ~= y then return x < y end
    return a < b
  end)
  return keys
end

local function literal(v)
  if type(v) == "string" then return (("%q"):format(v):gsub("\\\n", "\\n")) end
  if type(v) == "number" then return (("%.14g"):format(v):gsub("e%-0(%d)$", "e-%1")) end
  if type(v) ~= "table" then return tostring(v) end
  local items = {}
  if #v > 0 or next(v) == nil then
    for i, x in ipairs(v) do items[i] = literal(x) end
  else
    for i, key in ipairs(by_order(v, INSIDE)) do items[i] = key .. " = " .. literal(v[key]) end
  end
  return #items > 0 and "{ " .. table.concat(items, ", ") .. " }" or "{}"
end

-- Sections on lines of their own, plain values side by side; long lines broken between keys.
local function settings(values)
  local lines, plain = {}, nil
  local function flush()
    if plain then lines[#lines + 1] = plain end
    plain = nil
  end
  for _, key in ipairs(by_order(values, ORDER)) do
    local text, section = ("%s = %s,"):format(key, literal(values[key])), type(values[key]) == "table" and #values[key] == 0
    if section then
      flush()
      local line = "  " .. text
      while #line > 110 do
        local cut
        for at in line:sub(1, 108):gmatch "(),%s[%w_]+ =" do cut = at end
        if not cut then break end
        lines[#lines + 1] = line:sub(1, cut)
        line = "    " .. line:sub(cut + 2)
      end
      lines[#lines + 1] = line
    elseif plain and #plain + #text < 100 then plain = plain .. " " .. text
    else
      flush()
      plain = "  " .. text
    end
  end
  flush()
  return table.concat(lines, "\n")
end

-- What the pictures and captions want: sizes of pictures, length of captions, steps enough to learn.
local function fit(values, rows)
  local image = require "weft.io.image"
  local sides, words, seen, frequent = {}, {}, {}, 0
  for i = 1, rows:size(), math.max(1, math.floor(rows:size() / 16)) do
    local picture = image.load(rows[i].path)
    if picture then sides[#sides + 1] = math.min(picture.shape[1], picture.shape[2]) end
  end
  for i, p in rows:each() do
    local n = 0
    for word in p.caption:lower():gmatch "[%w']+" do
      n = n + 1
      seen[word] = (seen[word] or 0) + 1
      if seen[word] == 3 then frequent = frequent + 1 end
    end
    words[i] = n
  end
  table.sort(sides)
  table.sort(words)
  local d, side = values.data, sides[math.ceil(#sides / 2)] or values.data.size
  if side < 0.75 * d.size then
    local patch = values.encoder.patch
    local size = math.max(2, math.floor(math.max(side, 28) / patch)) * patch
    d.size, d.resize, values.encoder.image = size, size, size
  end
  d.length = math.max(12, math.min(64, math.ceil(1.5 * words[math.ceil(0.95 * #words)]) + 6))
  d.vocab = math.max(300, math.min(8192, 280 + frequent))  -- bytes, special tokens, and words that come back
  local train = math.floor(rows:size() * (1 - d.held_out))
  values.batch = math.max(2, math.min(values.batch, 2 ^ math.floor(math.log(math.max(train, 2) / 4) / math.log(2))))
  local per_epoch = math.max(1, math.floor(train / values.batch))
  local share = values.warmup_epochs / values.epochs
  values.epochs = math.max(4, math.min(60, math.ceil(600 / per_epoch)))
  values.warmup_epochs = math.max(1, math.floor(values.epochs * share + 0.5))
  d.vary_after = values.warmup_epochs
  values.warmup_steps = math.min(values.warmup_steps, math.max(5, math.floor(0.05 * per_epoch * values.epochs)))
  return per_epoch * values.epochs
end

local FORM = [[
-- %s.lua: %s
--   weft train %s.lua             any key below can be changed: lora.rank=8 epochs=4
local weft = require "weft"
local parts = require "vision_language" -- the model and its data; recipes/vision_language.lua

local config = weft.config {
%s
}

-- The model: parts.Model, and what you change of it.
local Model = weft.nn.Module(%q, parts.Model)

-- First all but the adapters learn, then the adapters too; frozen names parts of the model.
local phases = parts.phases(config)

-- Scores on held-out pictures, before training and at the end of each phase.
local evaluate = { weft.eval.retrieval, weft.eval.itm, weft.eval.captions }

-- Factor of a group's rate, function(step, steps, group); nil: a warm-up and a cosine in each phase.
local schedule = nil

return weft.train.recipe {
  config = config, model = Model, data = parts.data, phases = phases, evaluate = evaluate,
  schedule = schedule, heads = parts.heads, finish = parts.finish, metric = parts.metric, after_warmup = parts.after_warmup,
}
]]

local function absolute(path)
  local ffi = require "ffi"
  pcall(ffi.cdef, "char *realpath(const char *path, char *out);")
  local out = ffi.new "char[4097]"
  if ffi.C.realpath(path, out) == nil then return path end
  return ffi.string(out)
end

function M.run(args)
  local files = require "weft.files"
  local name = args[1]
  if not name or args[2] then error({ usage = "one name is expected, such as stamps" }, 0) end
  name = name:gsub("%.lua$", "")
  local base = name:match "[^/]+$"
  if not base or not base:find "^[%w_%-]+$" then
    error({ usage = ("a name of letters, digits, _ and - is expected, got %q"):format(name) }, 0)
  end
  local path = name .. ".lua"
  if files.exists(path) then error(("%s is there already; choose another name, or move it away"):format(path), 0) end
  require "weft"
  local values = require("weft.config").values(require("weft.train").load_recipe("recipes/quickstart.lua").config)
  local what, said = "no pictures are named yet: set data.root", {}
  if args.data then
    local place = absolute(args.data)
    local find = require "weft.data.pairs"
    local rows, counts, kind = find.find(place, "auto")
    if not rows then error(counts, 0) end
    local steps = fit(values, rows)
    values.data.kind, values.data.root = kind, place
    what = ("%d captioned pictures of %s"):format(rows:size(), place)
    said[1] = ("%s: %s"):format(what, FORMS[kind])
    if counts.without + counts.empty + counts.missing > 0 then
      said[2] = ("left out: %d pictures without a caption, %d empty captions, %d captions whose picture is not there")
        :format(counts.without, counts.empty, counts.missing)
    end
    said[#said + 1] = ("pictures of %d x %d, captions of up to %d tokens, batches of %d, %d epochs: about %d steps"):format(values.data.size,
      values.data.size, values.data.length, values.batch, values.epochs, steps)
  end
  local folder = path:match "^(.*)/[^/]*$"
  if folder and folder ~= "" then assert(files.make_dirs(folder)) end
  local class = base:gsub("[^%w]", "_"):gsub("^%d", "_%0"):gsub("^%l", string.upper)
  local ok, message = files.write(path, FORM:format(base, what, name, settings(values), class))
  if not ok then error(message, 0) end
  for _, line in ipairs(said) do print(line) end
  print(("%s is written. Next: weft train %s%s"):format(path, path, args.data and "" or " data.root=FOLDER"))
  return 0
end

return M
