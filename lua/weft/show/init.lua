-- weft.show: a tensor or a picture, in the terminal or as a PNG. What it looks like is pixels.lua's, how a
-- terminal draws it draw.lua's.
local A = require "weft.args"

local M = {}

---Draws a picture or a tensor: in the terminal (kitty's protocol or sixel where the terminal says that it
---can, half blocks in colour elsewhere, plain characters where there is no colour), or into a PNG.
---A path is a picture's file. [H,W,3] of bytes is a picture, [3,H,W] an encoder's input, [N,3,H,W] a sheet of
---the first 12; [H,W] and [N] are numbers, drawn from their lowest (dark) to their highest (light);
---[N,H,W] a sheet of such, as attention maps are.
---@param value any
---@param options? table  path (a .png that is written in place of drawing), columns, rows (the terminal's)
---
---    weft.show(weft.randn { 8, 8 }, { path = "noise.png" })
function M.show(value, options)
  local o = A.options(options, { path = A.none, columns = A.none, rows = A.none }, "show")
  require("weft.autograd").no_grad(function()
    local picture, kind = require("weft.show.pixels").of(value)
    if o.path then
      local ok, message = require("weft.io.image").save(o.path, picture)
      if not ok then error("show: " .. message, 0) end
      return
    end
    local terminal, draw = require "weft.terminal", require "weft.show.draw"
    local columns, rows = terminal.size()
    columns, rows = math.min(o.columns or columns, columns), o.rows or math.max(4, rows - 4)
    local how = terminal.pictures()
    local text
    if how == "kitty" then text = draw.kitty(require("weft.io.image").png(draw.fit(picture, 8 * columns, 16 * rows, true)))
    elseif how == "sixel" then text = draw.sixel(picture, 8 * columns, 16 * rows)
    elseif how == "blocks" then
      local colors = terminal.colors()
      text = draw.blocks(picture, columns, rows, colors == "none" and "256" or colors)
    else text = draw.text(picture, math.min(columns, 64), rows) end
    io.write(text)
    if kind ~= "picture" then io.write(kind, "\n") end
    io.flush()
  end)
end

return M
