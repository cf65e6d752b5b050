-- page.lua: reads an HTML page strictly: what is open is closed in order. For specs of reports.
local M = {}

local void = { meta = true, br = true, img = true, hr = true, link = true, col = true }
local names = { amp = "&", lt = "<", gt = ">", quot = '"', ["#39"] = "'" }

local function unescape(text)
  return (text:gsub("&([#%w]+);", function(name)
    return names[name] or error("unknown entity &" .. name .. ";", 0)
  end))
end

---A list of elements { tag, attributes, text (of itself and below), inside = {} } as a tree; fails where the page is not
---well-formed.
function M.parse(page)
  local at = assert(select(2, page:find("^<!DOCTYPE html>\n")), "a doctype is expected") + 1
  local root = { tag = "", inside = {}, attributes = {}, parts = {} }
  local stack = { root }
  local function add_text(text)
    assert(not text:find "[<>]", "a bare < or > in text: " .. text:sub(1, 60))
    for entity in text:gmatch "&[^;]*;?" do assert(entity:find "^&#?%w+;$", "a bare & in text: " .. entity) end
    for _, e in ipairs(stack) do table.insert(e.parts, unescape(text)) end
  end
  while at <= #page do
    local open = page:find("<", at, true) or #page + 1
    if open > at then add_text(page:sub(at, open - 1)) end
    if open > #page then break end
    local close, stop = page:match("^</([%w]+)>()", open)
    if close then
      local top = table.remove(stack)
      assert(top.tag == close, ("</%s> closes <%s>"):format(close, top.tag))
      at = stop
    else
      local tag, rest = page:match("^<([%a][%w]*)()", open)
      assert(tag, "no element: " .. page:sub(open, open + 40))
      local e = { tag = tag, attributes = {}, inside = {}, parts = {} }
      while true do
        local name, value, after = page:match('^%s+([%w%-:]+)="([^"<]*)"()', rest)
        if not name then break end
        assert(e.attributes[name] == nil, "an attribute twice: " .. name)
        e.attributes[name] = unescape(value)
        rest = after
      end
      local slash, after = page:match("^(/?)>()", rest)
      assert(after, "an attribute that can't be read: " .. page:sub(open, rest + 30))
      assert((slash == "/") == (void[tag] or false), "void or not: " .. tag)
      table.insert(stack[#stack].inside, e)
      at = after
      if not void[tag] then
        stack[#stack + 1] = e
        if tag == "script" or tag == "style" then
          local finish = assert(page:find("</" .. tag .. ">", at, true))
          e.parts[1] = page:sub(at, finish - 1)
          at = finish
        end
      end
    end
  end
  assert(#stack == 1, "never closed: " .. stack[#stack].tag)
  return root
end

---All elements below one that a test accepts, in order.
function M.all(root, tag, class)
  local out = {}
  local function visit(e)
    for _, child in ipairs(e.inside) do
      if child.tag == tag and (not class or (" " .. (child.attributes.class or "") .. " "):find(" " .. class .. " ", 1, true)) then
        out[#out + 1] = child
      end
      visit(child)
    end
  end
  visit(root)
  return out
end

function M.text(e) return table.concat(e.parts) end

---Cells of a table as lists of texts.
function M.cells(e)
  local rows = {}
  for i, tr in ipairs(M.all(e, "tr")) do
    rows[i] = {}
    for k, cell in ipairs(tr.inside) do rows[i][k] = M.text(cell) end
  end
  return rows
end

---The data of the line chart with this title, or nil.
function M.chart(root, title)
  for _, figure in ipairs(M.all(root, "figure", "lines")) do
    if M.text(figure.inside[1]):match "^%S+" == title or M.text(figure.inside[1]) == title then
      return require("weft.io.json").decode(M.text(M.all(figure, "script")[1])), figure
    end
  end
end

return M
