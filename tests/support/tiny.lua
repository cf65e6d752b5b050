-- tiny.lua: a generated folder of little captioned pictures, and the recipe of stage 1 so small that
-- a run of both phases takes a second or two.
require "weft"
local command = require "tests.support.command"

local M = {}

local COLORS = { red = { 220, 40, 30 }, green = { 30, 180, 60 }, blue = { 40, 70, 220 }, yellow = { 230, 220, 50 },
  white = { 245, 245, 245 }, black = { 10, 10, 10 } }
local COLOR_NAMES = { "red", "green", "blue", "yellow", "white", "black" }
local SHAPES = { "square", "bar", "frame", "cross", "corner", "stripe" }

local function inside(shape, y, x, n)
  local m = n / 2
  if shape == "square" then return math.abs(y - m) < n / 4 and math.abs(x - m) < n / 4 end
  if shape == "bar" then return math.abs(x - m) < n / 8 end
  if shape == "frame" then return y < n / 6 or x < n / 6 or y >= n - n / 6 or x >= n - n / 6 end
  if shape == "cross" then return math.abs(y - x) < n / 8 or math.abs(n - 1 - y - x) < n / 8 end
  if shape == "corner" then return y + x < n * 0.7 end
  return math.floor(y / 4) % 2 == 0
end

---Writes a picture of a shape in a colour; `tone` makes pictures of one caption differ.
function M.picture(path, color, shape, tone)
  local image = require "weft.io.image"
  local n = 28
  local canvas = image.canvas(n, n, 128 + (tone or 0))
  local data, c = canvas:data(), COLORS[color]
  for y = 0, n - 1 do
    for x = 0, n - 1 do
      if inside(shape, y, x, n) then
        for k = 0, 2 do data[(y * n + x) * 3 + k] = c[k + 1] end
      end
    end
  end
  assert(image.save(path, canvas))
end

function M.write(path, text)
  local f = assert(io.open(path, "wb"))
  f:write(text)
  f:close()
end

function M.read(path)
  local f = assert(io.open(path, "rb"))
  local text = f:read "*a"
  f:close()
  return text
end

---A folder of n pictures NN.png with NN.txt; every sixth caption is that of the picture before.
---@return string root, function remove
function M.pictures(n)
  local root, remove = command.folder()
  for i = 1, n or 24 do
    local k = i % 6 == 0 and i - 1 or i
    local color, shape = COLOR_NAMES[k % 6 + 1], SHAPES[math.floor(k / 6) % 6 + 1]
    local name = ("%s/%02d"):format(root, i)
    M.picture(name .. ".png", color, shape, i)
    M.write(name .. ".txt", ("A %s %s.\n"):format(color, shape))
  end
  return root, remove
end

---Overrides that make recipes/stage1.lua tiny; `more` come after them.
function M.overrides(root, more)
  local list = {
    "seed=3", "encoder.pretrained=", "encoder.width=16", "encoder.layers=2", "encoder.heads=2", "encoder.image=28", "encoder.patch=14",
    "encoder.init_range=0.05",
    "lora.rank=2", "lora.alpha=4", "compress.hidden=16", "compress.width=16", "language.width=24", "language.layers=2", "language.ff=32",
    "language.heads=2", "fusion.layers=1", "fusion.heads=2", "fusion.ff=16", "memory.slots=4", "itc.dim=8", "itc.queue=8",
    "warmup_epochs=2", "epochs=4", "batch=4", "accumulate=1", "lr=0.002", "warmup_steps=2",
    "features.memory=4", "data.root=" .. root, "data.held_out=0.25", "data.length=12", "data.vocab=290", "data.size=28",
    "data.resize=28", "data.threads=1", "data.cache=4", "checkpoint_every=0", "log_every=1",
  }
  for _, text in ipairs(more or {}) do list[#list + 1] = text end
  return list
end

---The tiny recipe, loaded.
function M.recipe(root, more)
  return require("weft.train").load_recipe("recipes/stage1.lua", M.overrides(root, more))
end

---A run of it in a folder of its own, quiet.
---@return table run, function remove
function M.run(root, more)
  local dir, remove = command.folder()
  local run = require("weft.train").start(M.recipe(root, more), { dir = dir .. "/run", quiet = true, overrides = M.overrides(root, more) })
  return run, remove
end

---The words of a command line that does the same.
function M.words(root, more)
  local list = { "recipes/stage1.lua" }
  for _, text in ipairs(M.overrides(root, more)) do list[#list + 1] = "'" .. text .. "'" end
  return table.concat(list, " ")
end

function M.json(path) return assert(require("weft.io.json").read(path)) end

---Rows of a run's metrics.jsonl.
function M.metrics(dir)
  local rows = {}
  for line in M.read(dir .. "/metrics.jsonl"):gmatch "[^\n]+" do rows[#rows + 1] = require("weft.io.json").decode(line) end
  return rows
end

return M
