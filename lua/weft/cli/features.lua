-- features.lua: `weft features`: what a DINOv2 model makes of pictures, as safetensors.
local M = {
  summary = "features of pictures from a DINOv2 directory, with an adapter if wanted",
  usage = "MODEL (PICTURE|FOLDER|- ... | --input X.safetensors) --output Y.safetensors",
  about = "MODEL is a Hugging Face directory, or a name in its cache. The output holds last_hidden_state and pooler_output; "
    .. "for pictures also their names, in the metadata. `-` reads a list of pictures from standard input.",
  options = {
    { "adapter", "a PEFT adapter directory to put on the model", value = "DIR" },
    { "merge", "merge the adapter into the weights first" },
    { "input", "a safetensors file with pixel_values [B,3,H,W] float32", value = "FILE" },
    { "output", "where the features go", value = "FILE" },
    { "pool", "only one vector a picture: cls, mean; or patches", value = "KIND" },
    { "batch", "pictures at a time", value = "N", default = 8 },
    { "dtype", "of the features: float32, float64 (computed so), float16, bfloat16", value = "TYPE", default = "float32" },
    { "device", "where the model runs: cpu, cuda, cuda:1 ...", value = "NAME", default = "cpu" },
    { "force", "also with an adapter that was trained on another base or on pictures prepared otherwise, or changes nothing" },
    { "upright", "turn pictures as their EXIF data says" },
  },
  examples = { "weft features facebook/dinov2-base photos/ --output photos.safetensors",
    "weft features dinov2 --adapter runs/a/adapter --input x.safetensors --output y.safetensors" },
}

local PICTURE = { png = true, jpg = true, jpeg = true, bmp = true }
local OTHER = { webp = true, gif = true, tif = true, tiff = true, heic = true, avif = true, jxl = true }

-- Paths of the pictures that were named or lie in the folders named; how many pictures of other kinds these hold.
local function pictures_of(words)
  local files, list, others = require "weft.files", {}, 0
  for i = 2, #words do
    local before = #list
    if words[i] == "-" then
      for line in io.lines() do list[#list + 1] = line end
    elseif files.is_dir(words[i]) then
      for _, name in ipairs(assert(files.walk(words[i]))) do
        local ending = (name:match "%.(%w+)$" or ""):lower()
        if PICTURE[ending] then list[#list + 1] = words[i] .. "/" .. name elseif OTHER[ending] then others = others + 1 end
      end
      if #list == before then error(("%s: no PNG, JPEG or BMP is in this folder or below it"):format(words[i]), 0) end
    else list[#list + 1] = words[i] end
  end
  return list, others
end

local function pooled(out, kind)
  if kind == "cls" then return { pooler_output = out.pooler_output } end
  if kind == "mean" then return { mean = out.patches:mean(2) } end
  if kind == "patches" then return { patches = out.patches } end
  return { last_hidden_state = out.last_hidden_state, pooler_output = out.pooler_output }
end

local DTYPE = { float32 = true, float64 = true, float16 = true, bfloat16 = true }

local function check(args)
  local function wrong(...) error({ usage = (...):format(select(2, ...)) }, 0) end
  if not args[1] then wrong "a model directory is expected" end
  if not args.output then wrong "--output FILE is expected" end
  if not args.output:find "%.safetensors$" then wrong("--output: a name that ends in .safetensors is expected, got %s", args.output) end
  if args.pool and args.pool ~= "cls" and args.pool ~= "mean" and args.pool ~= "patches" then
    wrong("--pool: cls, mean or patches are expected, got %s", args.pool)
  end
  local size = tonumber(args.batch or 8)
  if not size or size < 1 or size % 1 ~= 0 then wrong("--batch: a whole number from 1 is expected, got %s", args.batch) end
  local dtype = args.dtype or "float32"
  if not DTYPE[dtype] then wrong("--dtype: float32, float64, float16 or bfloat16 is expected, got %s", dtype) end
  if args.merge and not args.adapter then wrong "--merge goes with --adapter DIR" end
  return size, dtype
end

-- Batches of pictures, decoded ahead by threads: yields pixels and the names that they belong to.
local function each_batch(list, size, rule, options, broken, fn)
  local weft = require "weft"
  local loader, plan = rule:loader(options)
  local tickets, batches = {}, math.ceil(#list / size)
  local function submit(k)
    if k > batches then return end
    local items = {}
    for i = (k - 1) * size + 1, math.min(k * size, #list) do items[#items + 1] = plan(list[i]) end
    tickets[k] = loader:submit(items)
  end
  submit(1)
  submit(2)
  for k = 1, batches do
    local pixels, problems = loader:take(tickets[k])
    submit(k + 2)
    local good, names = {}, {}
    for b = 1, pixels:size(1) do
      if problems[b] then broken(problems[b])
      else good[#good + 1], names[#names + 1] = b - 1, list[(k - 1) * size + b] end
    end
    if #good > 0 and #good < pixels:size(1) then
      pixels = weft.index_select(pixels, weft.tensor(good, { dtype = "int64" }), 1)
    end
    if #good > 0 then fn(pixels, names) end
  end
  loader:close()
end

-- The same where each picture has a size of its own: one at a time.
local function each_picture(list, rule, options, broken, fn)
  local image = require "weft.io.image"
  for _, path in ipairs(list) do
    local picture, message = image.load(path, options)
    if picture then fn(rule:apply(picture):unsqueeze(1), { path }) else broken(message) end
  end
end

function M.run(args)
  local size, dtype = check(args)
  local weft = require "weft"
  -- said now, not after hours of pictures
  local folder = args.output:match "^(.+)/[^/]*$"
  if folder and not require("weft.files").is_dir(folder) then error(("--output %s: there is no folder %s"):format(args.output, folder), 0) end
  local preprocess = require "weft.io.preprocess"
  local safetensors = require "weft.io.safetensors"
  local terminal = require("weft.core").lib.weft_is_terminal(2)
  local function say(...) io.stderr:write((...):format(select(2, ...)), "\n") end
  local model, note = weft.models.dinov2.from_pretrained(args[1])
  if note then say("%s", note) end
  local rule, found = preprocess.read(model.directory)
  if args.adapter then
    local _, report = weft.peft.load(model, args.adapter, { force = args.force or false, preprocessing = not args.input and rule or nil })
    say("%s", report)
    model:eval()
    if args.merge then
      local side = model.config.patch_size * 4
      local pixels = weft.randn { 2, 3, side, side, rng = weft.random.stream("features/merge", 1) }
      local _, difference = weft.peft.merge(model, { force = args.force, probe = function() return model(pixels).last_hidden_state end })
      say("%s", tostring(difference))
    end
  end
  local compute, device = dtype == "float64" and dtype or "float32", args.device or "cpu"
  if compute ~= "float32" then model:to(compute) end
  if device ~= "cpu" then model:to(device) end
  local names, broken, total = {}, 0, 0
  local features, filled = {}, {}   -- memory for all, taken at the first; nothing else of a batch stays
  local function keep(name, t)
    local all = features[name]
    if not all then
      local shape = t.shape
      shape[1], shape.dtype = total, dtype
      all = weft.empty(shape):keep()
      features[name], filled[name] = all, 0
    end
    if all.ndim == 3 and all:size(2) ~= t:size(2) then
      error("pictures of different sizes have different numbers of patches: use --pool cls or --pool mean", 0)
    end
    all:narrow(1, filled[name] + 1, t:size(1)):copy_(t)
    filled[name] = filled[name] + t:size(1)
  end
  local function run(pixels)
    weft.scope(function()
      weft.no_grad(function()
        if pixels.dtype ~= compute then pixels = pixels:to(compute) end
        if device ~= "cpu" then pixels = pixels:to(device) end
        for name, t in pairs(pooled(model(pixels), args.pool)) do
          if t.dtype ~= dtype then t = t:to(dtype) end
          keep(name, device == "cpu" and t or t:to "cpu")
        end
      end)
    end)
  end
  local metadata
  if args.input then
    local file, message = safetensors.load(args.input)
    if not file then error(message, 0) end
    local x = file.pixel_values
    if not x or x.ndim ~= 4 then error(args.input .. ": pixel_values [B,3,H,W] is expected", 0) end
    total = x:size(1)
    for first = 1, total, size do run(x:narrow(1, first, math.min(size, x:size(1) - first + 1))) end
  else
    local list, others = pictures_of(args)
    total = #list
    if total == 0 then
      error({ usage = args[2] == "-" and "no picture is named on standard input" or "pictures, a folder, or --input are expected" }, 0)
    end
    say("%s%s", rule:describe(), found and "" or " (as DINOv2's own: there is no preprocessor_config.json)")
    if others > 0 then say("%d picture%s of other kinds left out (PNG, JPEG and BMP are read)", others, others == 1 and "" or "s") end
    local options = { alpha = "drop", orientation = args.upright or false }
    local done = 0
    local function progress(n)
      done = done + n
      if terminal then io.stderr:write(("\r%d of %d"):format(done, #list)) end
    end
    local function report(message)
      say("%s%s", terminal and "\r" or "", message)
      broken = broken + 1
      progress(1)
    end
    local function take(pixels, which)
      run(pixels)
      for _, name in ipairs(which) do names[#names + 1] = name end
      progress(#which)
    end
    if rule:size() then
      options.depth = 3
      each_batch(list, size, rule, options, report, take)
    else each_picture(list, rule, options, report, take) end
    if terminal then io.stderr:write "\n" end
    if broken > 0 then say("%d of %d pictures could not be read", broken, #list) end
    metadata = { names = require("weft.io.json").encode(names), preprocessing = rule:describe() }
  end
  if not next(features) then error("no picture could be read", 0) end
  for name, n in pairs(filled) do features[name] = features[name]:narrow(1, 1, n) end
  local ok, message = safetensors.save(args.output, features, metadata)
  if not ok then error(message, 0) end
  return broken > 0 and 1 or 0
end

return M
