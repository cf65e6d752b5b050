-- markup.lua: HTML and SVG as values. Text is escaped wherever it stands; only what an element returned is
-- taken as markup.
local M = {}

local Node = {}
Node.__index = Node
Node.__tostring = function(self) return self.text end

local entities = { ["&"] = "&amp;", ["<"] = "&lt;", [">"] = "&gt;", ['"'] = "&quot;", ["'"] = "&#39;" }

---Text that stands for itself in HTML, in attributes too. What no page may hold becomes U+FFFD.
---@param text any
---@return string
function M.escape(text)
  return (tostring(text):gsub("[%z\1-\8\11\12\14-\31\127]", "\239\191\189"):gsub("[&<>\"']", entities))
end

-- Elements that have no end tag in HTML; written <br/> they are well-formed in XML too.
local void = { meta = true, br = true, img = true, hr = true, link = true, col = true }

local function add(out, child)
  if child == nil or child == false then return end
  if getmetatable(child) == Node then out[#out + 1] = child.text
  elseif type(child) == "table" then
    for i = 1, #child do add(out, child[i]) end
  else out[#out + 1] = M.escape(child) end
end

---An element: el("td", { class = "n" }, "text", other elements, lists of them). Attributes that are false
---are left out, those that are true have an empty value.
---@param tag string
---@param attributes table?
---@return table node
function M.el(tag, attributes, ...)
  local out, names = { "<" .. tag }, {}
  for name in pairs(attributes or {}) do names[#names + 1] = name end
  table.sort(names)
  for _, name in ipairs(names) do
    local v = attributes[name]
    if v then out[#out + 1] = (' %s="%s"'):format(name, v == true and "" or M.escape(v)) end
  end
  if void[tag] then
    out[#out + 1] = "/>"
  else
    out[#out + 1] = ">"
    for i = 1, select("#", ...) do add(out, (select(i, ...))) end
    out[#out + 1] = "</" .. tag .. ">"
  end
  return setmetatable({ text = table.concat(out) }, Node)
end

---Markup that the caller vouches for.
function M.raw(text) return setmetatable({ text = text }, Node) end

---Values as JSON in a script element that no browser runs.
function M.json(value)
  local text = require("weft.io.json").encode(value):gsub("<", "\\u003c"):gsub(">", "\\u003e"):gsub("&", "\\u0026")
  return M.raw('<script type="application/json">' .. text .. "</script>")
end

---A table: head is a list of cells, rows a list of lists; numbers stand to the right.
---@param head any[]
---@param rows any[][]
---@param options? table  class, left (columns whose cells are text: { [1] = true })
function M.table(head, rows, options)
  local el, o = M.el, options or {}
  local left = o.left or { true }
  local function cells(tag, row)
    local out = {}
    for i = 1, #head do
      local v = row[i]
      out[i] = el(i == 1 and tag == "td" and "th" or tag,
        { class = not left[i] and "n" or nil, scope = i == 1 and tag == "td" and "row" or nil }, v == nil and "" or v)
    end
    return el("tr", { class = row.class }, out)
  end
  local body, titled = {}, false
  for _, h in ipairs(head) do titled = titled or h ~= "" end
  for i, row in ipairs(rows) do body[i] = cells("td", row) end
  return el("div", { class = "wide" }, el("table", { class = o.class }, titled and el("thead", nil, cells("th", head)), el("tbody", nil, body)))
end

local digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"

---Base64 of a string of bytes.
---@param text string
---@return string
function M.base64(text)
  local out = {}
  for i = 1, #text, 3 do
    local a, b, c = text:byte(i, i + 2)
    local n = a * 65536 + (b or 0) * 256 + (c or 0)
    local function digit(shift)
      local k = bit.band(bit.rshift(n, shift), 63) + 1
      return digits:sub(k, k)
    end
    out[#out + 1] = digit(18) .. digit(12) .. (b and digit(6) or "=") .. (c and digit(0) or "=")
  end
  return table.concat(out)
end

return M
