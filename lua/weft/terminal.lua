-- terminal.lua: what the terminal is and can: its size now, colours, pictures.
local ffi = require "ffi"

ffi.cdef [[
typedef struct weft_winsize { unsigned short rows, columns, x, y; } weft_winsize;
int ioctl(int fd, unsigned long request, ...);
int weft_isatty(int fd) __asm__("isatty");
]]

local M = {}

local TIOCGWINSZ = ffi.arch:find "^mips" and 0x40087468 or ffi.arch:find "^ppc" and 0x40087468 or 0x5413

---Whether standard output is a terminal.
function M.is_terminal(fd) return ffi.C.weft_isatty(fd or 1) == 1 end

---Columns and rows as they are now, after any resize; what the environment says, or 80 x 24, elsewhere.
---@return integer columns, integer rows
function M.size(fd)
  local w = ffi.new "weft_winsize"
  local columns, rows
  if ffi.C.ioctl(fd or 1, TIOCGWINSZ, w) == 0 and w.columns > 0 then columns, rows = w.columns, w.rows end
  return columns or tonumber(os.getenv "COLUMNS") or 80, rows and rows > 0 and rows or tonumber(os.getenv "LINES") or 24
end

---"true" (24 bits), "256", or "none".
function M.colors()
  if (os.getenv "NO_COLOR" or "") ~= "" or not M.is_terminal() then return "none" end
  local term, deep = os.getenv "TERM" or "", os.getenv "COLORTERM" or ""
  if term == "dumb" or term == "" then return "none" end
  if deep == "truecolor" or deep == "24bit" or term:find "direct" or term:find "kitty" then return "true" end
  return "256"
end

---How pictures are drawn: "kitty", "sixel", "blocks" (in colour), or "text". WEFT_SHOW names one.
function M.pictures()
  local want = os.getenv "WEFT_SHOW"
  if want == "kitty" or want == "sixel" or want == "blocks" or want == "text" then return want end
  if not M.is_terminal() then return "text" end
  local term, program = os.getenv "TERM" or "", os.getenv "TERM_PROGRAM" or ""
  local inside = os.getenv "TMUX" or term:find "^screen" or term:find "^tmux"
  if not inside then
    if os.getenv "KITTY_WINDOW_ID" or term == "xterm-kitty" or term == "xterm-ghostty" or program == "WezTerm" then return "kitty" end
    if term:find "sixel" or term:find "^foot" or term:find "^mlterm" or term:find "^yaft" then return "sixel" end
  end
  return M.colors() == "none" and "text" or "blocks"
end

-- Nearest of the 240 colours that every 256-colour terminal has alike.
local function of_256(r, g, b)
  local function level(v) return v < 48 and 0 or v < 115 and 1 or math.floor((v - 35) / 40) end
  local values = { [0] = 0, 95, 135, 175, 215, 255 }
  local lr, lg, lb = level(r), level(g), level(b)
  local grey = math.max(0, math.min(23, math.floor(((r + g + b) / 3 - 3) / 10)))
  local gv = 8 + 10 * grey
  local function far(x, y, z) return (x - r) ^ 2 + (y - g) ^ 2 + (z - b) ^ 2 end
  if far(gv, gv, gv) < far(values[lr], values[lg], values[lb]) then return 232 + grey end
  return 16 + 36 * lr + 6 * lg + lb
end

---The sequence that sets a colour: of the text, or behind it.
---@param kind string  of colors()
---@param behind boolean
function M.color(kind, behind, r, g, b)
  if kind == "none" then return "" end
  if kind == "true" then return ("\27[%d;2;%d;%d;%dm"):format(behind and 48 or 38, r, g, b) end
  return ("\27[%d;5;%dm"):format(behind and 48 or 38, of_256(r, g, b))
end

local STYLES = { error = "31", dim = "2", bold = "1" }

---A text in a style ("error", "dim", "bold") where the terminal has colours, else as it is.
function M.paint(style, text)
  if M.colors() == "none" then return text end
  return ("\27[%sm%s\27[0m"):format(STYLES[style], text)
end

return M
