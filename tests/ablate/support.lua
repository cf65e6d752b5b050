-- support.lua: a few generated pictures, and stage 1 so small that both its phases take a second.
require "weft"
local command = require "tests.support.command"

local M = {}

local COLORS = { red = { 220, 40, 30 }, green = { 30, 180, 60 }, blue = { 40, 70, 220 }, white = { 245, 245, 245 } }

---A folder of 16 captioned pictures, and what removes it.
function M.pictures()
  local image = require "weft.io.image"
  local root, remove = command.folder()
  local n = 0
  for color, c in pairs(COLORS) do
    for _, side in ipairs { "left", "right", "top", "bottom" } do
      n = n + 1
      local canvas = image.canvas(28, 28, 100 + n)
      local data = canvas:data()
      for y = 0, 27 do
        for x = 0, 27 do
          local inside = side == "left" and x < 14 or side == "right" and x > 13 or side == "top" and y < 14 or side == "bottom" and y > 13
          for k = 0, 2 do
            if inside then data[(y * 28 + x) * 3 + k] = c[k + 1] end
          end
        end
      end
      local name = ("%s/%s_%s"):format(root, color, side)
      assert(image.save(name .. ".png", canvas))
      local f = assert(io.open(name .. ".txt", "w"))
      f:write(("%s on the %s\n"):format(color, side))
      f:close()
    end
  end
  return root, remove
end

---Overrides that make recipes/stage1.lua tiny; `more` come after them.
function M.overrides(root, more)
  local list = { "seed=3", "encoder.pretrained=", "encoder.width=16", "encoder.layers=2", "encoder.heads=2", "encoder.image=28",
    "encoder.init_range=0.05", "lora.rank=2", "lora.alpha=4", "compress.hidden=16", "compress.width=16", "language.width=24",
    "language.layers=2", "language.ff=32", "language.heads=2", "fusion.layers=1", "fusion.heads=2", "fusion.ff=16", "memory.slots=4",
    "itc.dim=8", "itc.queue=8", "warmup_epochs=2", "epochs=4", "batch=4", "accumulate=1", "lr=0.002", "warmup_steps=2",
    "features.memory=4", "data.root=" .. root, "data.held_out=0.25", "data.length=12", "data.vocab=290", "data.size=28",
    "data.resize=28", "data.threads=1", "data.cache=4", "checkpoint_every=2", "log_every=1" }
  for _, text in ipairs(more or {}) do list[#list + 1] = text end
  return list
end

---The same as words for a shell.
function M.words(root, more)
  local list = {}
  for _, text in ipairs(M.overrides(root, more)) do list[#list + 1] = "'" .. text .. "'" end
  return table.concat(list, " ")
end

function M.json(path) return assert(require("weft.io.json").read(path)) end

return M
