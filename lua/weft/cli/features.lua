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
  },
  examples = { "weft features facebook/dinov2-base photos/ --output photos.safetensors",
    "weft features dinov2 --adapter runs/a/adapter --input x.safetensors --output y.safetensors" },
}

local PICTURE = { png = true, jpg = true, jpeg = true, bmp = true }

local function pictures_of(words)
  local files, list = require "weft.files", {}
  for i = 2, #words do
    if words[i] == "-" then
      for line in io.lines() do list[#list + 1] = line end
    elseif files.is_dir(words[i]) then
      for _, name in ipairs(assert(files.walk(words[i]))) do
        if PICTURE[(name:match "%.(%w+)$" or ""):lower()] then list[#list + 1] = words[i] .. "/" .. name end
      end
    else list[#list + 1] = words[i] end
  end
  return list
end

-- Reads preprocessor_config.json where the model has one.
local function preprocessing(dir)
  local json, image = require "weft.io.json", require "weft.io.image"
  local p = json.read(dir .. "/preprocessor_config.json")
  local o = { resize = 256, size = 224, mean = image.mean, std = image.std }
  if type(p) == "table" then
    if type(p.size) == "table" and p.size.shortest_edge then o.resize = p.size.shortest_edge end
    if type(p.crop_size) == "table" and p.crop_size.height then o.size = p.crop_size.height end
    o.mean, o.std = p.image_mean or o.mean, p.image_std or o.std
  end
  return o
end

local function pooled(out, kind)
  if kind == "cls" then return { pooler_output = out.pooler_output } end
  if kind == "mean" then return { mean = out.patches:mean(2) } end
  if kind == "patches" then return { patches = out.patches } end
  return { last_hidden_state = out.last_hidden_state, pooler_output = out.pooler_output }
end

function M.run(args)
  local weft = require "weft"
  local safetensors = require "weft.io.safetensors"
  if not args[1] then error({ usage = "a model directory is expected" }, 0) end
  if not args.output then error({ usage = "--output FILE is expected" }, 0) end
  if args.pool and args.pool ~= "cls" and args.pool ~= "mean" and args.pool ~= "patches" then
    error({ usage = ("--pool: cls, mean or patches are expected, got %s"):format(args.pool) }, 0)
  end
  local size = tonumber(args.batch) or 8
  local model = weft.models.dinov2.from_pretrained(args[1]):eval()
  if args.adapter then
    weft.peft.load(model, args.adapter)
    model:eval()
    if args.merge then weft.peft.merge(model) end
  end
  local parts, names, broken = {}, {}, 0
  local function run(pixels)
    local result = weft.scope(function()
      return weft.no_grad(function() return pooled(model(pixels), args.pool) end)
    end)
    for name, t in pairs(result) do
      parts[name] = parts[name] or {}
      table.insert(parts[name], t)
    end
  end
  if args.input then
    local file, message = safetensors.load(args.input)
    if not file then error(message, 0) end
    local x = file.pixel_values
    if not x or x.ndim ~= 4 then error(args.input .. ": pixel_values [B,3,H,W] is expected", 0) end
    for first = 1, x:size(1), size do run(x:narrow(1, first, math.min(size, x:size(1) - first + 1))) end
  else
    local list = pictures_of(args)
    if #list == 0 then error({ usage = "pictures, a folder, or --input are expected" }, 0) end
    local o = preprocessing(args[1])
    local loader = require("weft.io.loader").new { height = o.size, width = o.size, resize = o.resize, mean = o.mean, std = o.std, depth = 3 }
    local tickets = {}
    local batches = math.ceil(#list / size)
    local function submit(k)
      if k > batches then return end
      local plan = {}
      for i = (k - 1) * size + 1, math.min(k * size, #list) do plan[#plan + 1] = list[i] end
      tickets[k] = loader:submit(plan)
    end
    submit(1)
    submit(2)
    for k = 1, batches do
      local pixels, problems = loader:take(tickets[k])
      submit(k + 2)
      local good = {}
      for b = 1, pixels:size(1) do
        local name = list[(k - 1) * size + b]
        if problems[b] then
          io.stderr:write(problems[b], "\n")
          broken = broken + 1
        else
          good[#good + 1] = b - 1
          names[#names + 1] = name
        end
      end
      if #good > 0 then run(#good == pixels:size(1) and pixels or weft.index_select(pixels, weft.tensor(good, { dtype = "int64" }), 1)) end
      if require("weft.core").lib.weft_is_terminal(2) then io.stderr:write(("\r%d of %d"):format(math.min(k * size, #list), #list)) end
    end
    if require("weft.core").lib.weft_is_terminal(2) then io.stderr:write "\n" end
    loader:close()
  end
  if not next(parts) then error("no picture could be read", 0) end
  local out = {}
  for name, list in pairs(parts) do out[name] = weft.cat(list, 1) end
  local ok, message = safetensors.save(args.output, out, { names = require("weft.io.json").encode(names) })
  if not ok then error(message, 0) end
  return broken > 0 and 1 or 0
end

return M
