-- exchange.lua: weft's side of the exchange with transformers and PEFT (see run).
--   exchange.lua read SIZE GENERATION BASES DIR RESULTS   loads what PEFT wrote: how far outputs lie apart
--   exchange.lua write SIZE BASES OUT                     writes an adapter a variant, and exports
--   exchange.lua convert SIZE BASES FROM OUT GENERATION   translates PEFT's adapters for the other generation
--   exchange.lua table RESULTS TITLE                      the table of all results; exit code 1 if any differs
local weft = require "weft"
local json, safetensors, files = weft.io.json, weft.io.safetensors, require "weft.files"
local peft, dinov2 = weft.peft, weft.models.dinov2
local here = arg[0]:match "^(.*)/" or "."

local function variants() return assert(json.read(here .. "/variants.json")) end
local function base_of(v) return v.model or "dinov2" end

local function load(path)
  if path:find "llama$" or path:find "language$" then return weft.models.llama.from_pretrained(path) end
  return (dinov2.from_pretrained(path))
end

local function output(model, given)
  return weft.no_grad(function()
    if given.input_ids then return (model:logits(model(given.input_ids).last_hidden_state)) end
    return model(given.pixel_values).last_hidden_state
  end)
end

-- max|a - b| / max|b|
local function apart(a, b)
  if table.concat(a.shape, ",") ~= table.concat(b.shape, ",") then return 1 / 0 end
  return ((a - b):abs():max() / b:abs():max()):item()
end

local function append(path, row)
  local f = assert(io.open(path, "a"))
  f:write(json.encode(row), "\n")
  f:close()
end

local function attempt(results, row, fn)
  local ok, a, b = pcall(fn)
  if ok then row.difference, row.note = a, b
  else row.failed = (tostring(a):gsub("^[^ ]*%.lua:%d+: ", ""):gsub("%s+", " ")) end
  append(results, row)
end

local M = {}

function M.read(size, generation, bases, dir, results)
  for _, kind in ipairs { "dinov2", "registers", "swiglu", "llama" } do
    if files.exists(bases .. "/" .. kind) then
      attempt(results, { size = size, variant = "model " .. kind, way = generation .. " writes, we read" }, function()
        local given = assert(safetensors.load(bases .. "/" .. kind .. "/io.safetensors"))
        return apart(output(load(bases .. "/" .. kind), given), given.output)
      end)
    end
  end
  for _, v in ipairs(variants()) do
    local path, row = dir .. "/" .. v.name, { size = size, variant = v.name, way = generation .. " writes, we read" }
    if files.exists(path .. ".cannot") then
      row.skipped = files.read(path .. ".cannot")
      append(results, row)
    elseif files.exists(path .. "/io.safetensors") then
      attempt(results, row, function()
        local given = assert(safetensors.load(path .. "/io.safetensors"))
        local model = peft.load(load(bases .. "/" .. base_of(v)), path)
        local far = apart(output(model:eval(), given), given.output)
        -- what a file does not hold, its writer lost
        local lost = apart(given.trained, given.output)
        return far, lost > 1e-5 and ("what it trained lies %.1e from what it saved"):format(lost) or nil
      end)
    end
  end
end

local function about(dir, size, variant, kind, base, generations, cannot)
  assert(json.write(dir .. "/about.json", { size = size, variant = variant, kind = kind, base = base or json.null,
    generations = generations and json.array(generations) or json.null, cannot = cannot or json.object {} }))
end

-- Everything that trains moves, so that nothing is at its beginning.
local function move(model, scale)
  weft.no_grad(function()
    for name, t in model:named_parameters() do
      if t.requires_grad then
        local spec = t.shape
        spec.rng = weft.random.stream("interop/" .. name, 1)
        t:copy_(t + weft.randn(spec) * scale)
      end
    end
  end)
end

local function write_adapter(size, v, bases, out, dialect)
  local model = load(bases .. "/" .. base_of(v))
  local given = assert(safetensors.load(bases .. "/" .. base_of(v) .. "/io.safetensors"))
  local options = { rank = 4, alpha = 8, seed = 5 }
  for key, value in pairs(v.weft) do options[key] = value end
  peft.lora(model, options)
  move(model, v.mutated and 0.01 or 0.05)
  local dir = out .. "/" .. v.name .. (dialect and "-" .. dialect or "")
  peft.save(model, dir, { base = base_of(v), dialect = dialect })
  given.output = output(model:eval(), given):contiguous()
  assert(safetensors.save(dir .. "/io.safetensors", given))
  about(dir, size, v.name .. (dialect and ", for " .. dialect .. " alone" or ""), "adapter", base_of(v),
    dialect and { tonumber(dialect:match "%d") }, v.cannot)
end

local function export_models(size, bases, out)
  local export = require "weft.models.export"
  for _, kind in ipairs { "dinov2", "registers", "swiglu" } do
    local from = bases .. "/" .. kind
    if files.exists(from) then
      local model, dir = load(from), out .. "/export-" .. kind
      peft.lora(model, { rank = 4, alpha = 8, seed = 5 })
      move(model, 0.05)
      local rule = { resize = 80, size = 70, mean = { 0.5, 0.4, 0.3 }, std = { 0.2, 0.3, 0.25 } }
      export.encoder(model, dir, { preprocessing = rule })
      local given = assert(safetensors.load(from .. "/io.safetensors"))
      given.output = output(model:eval(), given):contiguous()
      assert(safetensors.save(dir .. "/io.safetensors", given))
      local picture = weft.io.image.canvas(90, 120, { 200, 220, 240 })
      weft.io.image.text(picture, 40, 10, "weft", { scale = 3 })
      assert(weft.io.image.save(dir .. "/picture.png", picture))
      local pixels = weft.io.preprocess.read(dir):apply(picture):unsqueeze(1)
      assert(safetensors.save(dir .. "/pixels.safetensors", { pixel_values = pixels:contiguous() }))
      about(dir, size, "weft export: " .. kind, "model")
    end
  end
  local captions = { "A red square.", "A small red bar.", "A blue square, isn't it?", "naïve 12 cats" }
  local tokenizer = weft.tokenizer.train(captions, { vocab_size = 300, special_tokens = { "<pad>", "<s>", "</s>" } })
  local model = weft.models.llama.new { vocab = tokenizer.size, width = 24, layers = 2, heads = 2, ff = 40, rope_theta = 5000 }
  model:eval()
  local dir = out .. "/language"
  export.language(model, dir, { tokenizer = tokenizer, special = { pad = 0, bos = 1, eos = 2 } })
  local ids = weft.tensor({ { 1, 7, 9, 30, 12 } }, { dtype = "int64" })
  local given = { input_ids = ids }
  given.output = output(model, given):contiguous()
  assert(safetensors.save(dir .. "/io.safetensors", given))
  local words = {}
  for _, text in ipairs { captions[1], "A blue bar?  two  spaces\nand a line", captions[4], "it's 北京" } do
    words[#words + 1] = json.array { text, json.array(tokenizer:encode(text)) }
  end
  assert(json.write(dir .. "/words.json", json.array(words)))
  about(dir, size, "weft export: language", "model")
end

function M.write(size, bases, out)
  for _, v in ipairs(variants()) do
    if v.weft and files.exists(bases .. "/" .. base_of(v)) then
      for _, dialect in ipairs { "both", "transformers4", "transformers5" } do
        if dialect == "both" or v.name == "plain" or v.name == "patterns" or v.name == "swiglu" then
          local ok, message = pcall(write_adapter, size, v, bases, out, dialect ~= "both" and dialect or nil)
          if not ok then io.stderr:write(v.name, ": ", tostring(message), "\n") end
        end
      end
    end
  end
  export_models(size, bases, out)
end

function M.convert(size, bases, from, out, generation)
  local other = generation == "4" and 5 or 4
  for _, v in ipairs(variants()) do
    local path = from .. "/" .. v.name
    if files.exists(path .. "/io.safetensors") and files.exists(bases .. "/" .. base_of(v)) then
      local dir = ("%s/converted-%s-%s"):format(out, generation, v.name)
      local ok, message = pcall(peft.convert, path, dir, { dialect = "transformers" .. other })
      if ok then
        local given = assert(safetensors.load(path .. "/io.safetensors"))
        given.trained = nil
        assert(safetensors.save(dir .. "/io.safetensors", given))
        about(dir, size, v.name .. ", converted", "adapter", base_of(v), { other }, v.cannot)
      else io.stderr:write("convert ", v.name, ": ", tostring(message), "\n") end
    end
  end
end

M.table = require("tests.interop.rows").print

local verb = table.remove(arg, 1)
os.exit(M[verb](unpack(arg)))
