-- regex.lua: patterns of adapter settings, against whole module paths.
local ffi = require "ffi"
local A = require "weft.args"
local C = require("weft.core").lib

local M = {}

---Whether all of text matches.
function M.full(pattern, text)
  local found = C.weft_regex_full(pattern, text)
  if found < 0 then A.raise("peft: %s", ffi.string(C.weft_error())) end
  return found == 1
end

---A pattern that matches this text alone.
function M.escape(text) return (text:gsub("[%.%^%$%*%+%?%(%)%[%]%{%}%|\\]", "\\%0")) end

return M
