-- sheet.lua: held-out pictures with their true and generated captions: one picture of all of them, and
-- each small, for pages that show them.
local image = require "weft.io.image"
local files = require "weft.files"

local M = {}

local SMALL = 160  -- longer side of the small ones

---Writes sheet.png, captions.json and 1.png, 2.png, ... below dir.
---@param samples table[]  { path, name, caption, generated }
function M.write(_, dir, samples)
  if not samples or #samples == 0 then return end
  local ok, message = files.make_dirs(dir)
  if not ok then error(message, 0) end
  local pictures, texts, rows = {}, {}, {}
  for i, s in ipairs(samples) do
    local picture = image.load(s.path)
    rows[i] = { picture = s.name, caption = s.caption, generated = s.generated }
    if picture then
      pictures[#pictures + 1] = picture
      texts[#texts + 1] = ("true: %s  said: %s"):format(s.caption, s.generated)
      rows[i].small = i .. ".png"
      assert(image.save(dir .. "/" .. rows[i].small, image.within(picture, SMALL)))
    end
  end
  if #pictures == 0 then return end
  assert(image.save(dir .. "/sheet.png", image.sheet(pictures, texts, { columns = 4, cell = 224, lines = 5 })))
  assert(require("weft.io.json").write(dir .. "/captions.json", rows))
end

return M
