-- regex.lua: patterns of adapter settings, against whole module paths. They are Python's; PCRE2 reads them.
local ffi = require "ffi"
local A = require "weft.args"
local C = require("weft.core").lib

local M = {}

-- A pattern of Python's in PCRE2's words, where these differ: "{,3}" is a count, "\Z" the very end, and within
-- a class a bracket stands for itself.
local function translated(pattern)
  local out, i, class = {}, 1, nil
  while i <= #pattern do
    local c, two = pattern:sub(i, i), pattern:sub(i, i + 1)
    local count = not class and pattern:match("^{,%d+}", i)
    if c == "\\" then
      out[#out + 1] = two == "\\Z" and not class and "\\z" or two
      i = i + 1
    elseif count then
      out[#out + 1] = "{0" .. count:sub(2)
      i = i + #count - 1
    elseif class then
      out[#out + 1] = c == "[" and "\\[" or c
      -- the first of a class is no end of it
      if c == "]" and i > class then class = nil end
    else
      out[#out + 1] = c
      if c == "[" then class = pattern:sub(i + 1, i + 1) == "^" and i + 2 or i + 1 end
    end
    i = i + 1
  end
  return table.concat(out)
end

---Whether all of text matches.
function M.full(pattern, text)
  local found = C.weft_regex_full(translated(pattern), text)
  if found < 0 then A.raise("peft: %s", ffi.string(C.weft_error())) end
  return found == 1
end

---A pattern that matches this text alone.
function M.escape(text) return (text:gsub("[%.%^%$%*%+%?%(%)%[%]%{%}%|\\]", "\\%0")) end

return M
