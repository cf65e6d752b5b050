-- sheet.lua: held-out pictures with their true and generated captions, as one picture.
local image = require "weft.io.image"
local files = require "weft.files"

local M = {}

---Writes sheet.png and captions.json below dir.
---@param samples table[]  { path, name, caption, generated }
function M.write(_, dir, samples)
  if not samples or #samples == 0 then return end
  local ok, message = files.make_dirs(dir)
  if not ok then error(message, 0) end
  local pictures, texts = {}, {}
  for _, s in ipairs(samples) do
    local picture = image.load(s.path)
    if picture then
      pictures[#pictures + 1] = picture
      texts[#texts + 1] = ("true: %s  said: %s"):format(s.caption, s.generated)
    end
  end
  if #pictures == 0 then return end
  assert(image.save(dir .. "/sheet.png", image.sheet(pictures, texts, { columns = 4, cell = 224, lines = 5 })))
  local rows = {}
  for i, s in ipairs(samples) do rows[i] = { picture = s.name, caption = s.caption, generated = s.generated } end
  assert(require("weft.io.json").write(dir .. "/captions.json", rows))
end

return M
