-- pairs.lua: finds captioned pictures on disk: (path, caption) pairs from a folder, csv, jsonl or COCO.
local A = require "weft.args"
local files = require "weft.files"
local rows_of = require "weft.data.rows"

local M = {}

local PICTURE = { png = true, jpg = true, jpeg = true, bmp = true }
local function extension(path) return (path:match "%.([%w]+)$" or ""):lower() end

-- Has a text single spaces alone, and those between words? Most have, and this compiles.
local function tidy(text)
  local before = 32
  for i = 1, #text do
    local c = text:byte(i)
    if c == 194 or c < 32 or c == 32 and before == 32 then return false end
    before = c
  end
  return before ~= 32
end

local function clean(text)
  if tidy(text) then return text end
  return (text:gsub("\194\160", " "):gsub("%s+", " "):gsub("^%s+", ""):gsub("%s+$", ""))
end

-- NAME.png beside NAME.txt, whose first line is the caption.
local function folder(out, counts, root)
  return files.each(root, function(name)
    if not PICTURE[extension(name)] then return end
    local text = files.read(root .. "/" .. name:gsub("%.%w+$", ".txt"))
    local caption = text and clean((text:match "^[^\r\n]*"))
    if not caption then counts.without = counts.without + 1
    elseif caption == "" then counts.empty = counts.empty + 1
    else out:add(name, caption) end
  end)
end

-- The fields of a csv line, quotes doubled inside quotes.
local function csv_fields(line)
  local out, at = {}, 1
  if not line:find('"', 1, true) then
    local comma = line:find(",", 1, true)
    if not comma then return { line } end
    local next_ = line:find(",", comma + 1, true)
    return { line:sub(1, comma - 1), line:sub(comma + 1, (next_ or 0) - 1) }
  end
  while at <= #line + 1 do
    if line:sub(at, at) == '"' then
      local field, i = "", at + 1
      while true do
        local q = line:find('"', i, true)
        if not q then return nil end
        field = field .. line:sub(i, q - 1)
        if line:sub(q + 1, q + 1) == '"' then
          field, i = field .. '"', q + 2
        else
          at = q + 2
          break
        end
      end
      out[#out + 1] = field
    else
      local comma = line:find(",", at, true) or #line + 1
      out[#out + 1] = line:sub(at, comma - 1)
      at = comma + 1
    end
  end
  return out
end

local function add(out, counts, name, caption, where)
  if type(name) ~= "string" or type(caption) ~= "string" then
    return nil, where .. ": the name of a picture and a caption are expected"
  end
  caption = clean(caption)
  if caption == "" then counts.empty = counts.empty + 1
  elseif not counts.unseen and not files.exists(name:sub(1, 1) == "/" and name or out:root() .. "/" .. name) then counts.missing = counts.missing + 1
  else out:add(name, caption) end
  return true
end

local function csv(out, counts, _, file)
  local lines, message = files.lines(file)
  if not lines then return nil, message end
  local n = 0
  for line in lines do
    n = n + 1
    if line ~= "" then
      local f = csv_fields(line)
      if not f or #f < 2 then return nil, ("%s:%d: picture,caption is expected, got %q"):format(file, n, line:sub(1, 60)) end
      if not (n == 1 and not PICTURE[extension(f[1])]) then
        local ok, why = add(out, counts, f[1], f[2], ("%s:%d"):format(file, n))
        if not ok then return nil, why end
      end
    end
  end
  return true
end

local function jsonl(out, counts, _, file)
  local json = require "weft.io.json"
  local lines, message = files.lines(file)
  if not lines then return nil, message end
  local n = 0
  for line in lines do
    n = n + 1
    if line:find "%S" then
      local row, why = json.decode(line)
      if type(row) ~= "table" then
        return nil, ("%s:%d: %s"):format(file, n, row == nil and tostring(why) or "an object with image and caption is expected")
      end
      local ok, problem = add(out, counts, row.image or row.file_name or row.path, row.caption or row.text, ("%s:%d"):format(file, n))
      if not ok then return nil, problem end
    end
  end
  return true
end

-- Where COCO's own layout has the pictures of captions_NAME.json: beside the list, in NAME/ or images/,
-- there or one folder above.
local function coco_root(root, file, name)
  local split = (file:match "([^/]+)%.json$" or ""):gsub("^captions_", "")
  local above = root:match "^(.+)/[^/]*$" or root
  for _, dir in ipairs { root, root .. "/" .. split, root .. "/images", above .. "/" .. split, above .. "/images", above } do
    if files.exists(dir .. "/" .. name) then return dir end
  end
  return root
end

local function coco(out, counts, root, file)
  local json = require "weft.io.json"
  local doc, message = json.read(file)
  if not doc then return nil, message end
  if type(doc) ~= "table" or type(doc.images) ~= "table" or type(doc.annotations) ~= "table" then
    return nil, file .. ": a COCO file has images and annotations"
  end
  local names = {}
  for _, image in ipairs(doc.images) do names[image.id] = image.file_name end
  if doc.images[1] and type(doc.images[1].file_name) == "string" then out:set_root(coco_root(root, file, doc.images[1].file_name)) end
  for i, a in ipairs(doc.annotations) do
    local ok, why = add(out, counts, names[a.image_id], a.caption, ("%s: annotation %d"):format(file, i))
    if not ok then return nil, why end
  end
  return true
end

---Finds what kind of data lies at root, a folder or a list's file: "folder", "csv", "jsonl" or "coco", and its file.
function M.recognise(root)
  if not files.is_dir(root) then
    local kind = ({ csv = "csv", jsonl = "jsonl", json = "coco" })[extension(root)]
    return kind or "folder", kind and root
  end
  for _, candidate in ipairs { { "csv", "captions.csv" }, { "jsonl", "captions.jsonl" }, { "coco", "captions.json" } } do
    if files.exists(root .. "/" .. candidate[2]) then return candidate[1], root .. "/" .. candidate[2] end
  end
  return "folder"
end

---Captioned pictures below root: rows with path, name and caption, counts of what was left out, and the kind.
---@param root string  a folder, or a list's file
---@param kind? string  "folder", "csv", "jsonl", "coco" or "auto"
---@param unseen? boolean  whether a list's pictures are there is not looked at
---@return weft.Rows|nil rows, table|string counts_or_message, string? kind
function M.find(root, kind, unseen)
  if root == "" then return nil, "data.root is not set: pass data.root=FOLDER, a folder of pictures each with a .txt caption beside it" end
  local found, file = M.recognise(root)
  if not files.is_dir(root) then
    if not file or not files.exists(root) then
      return nil, ("%s is not a folder; data.root names a folder of captioned pictures, or a .csv, .jsonl or .json list"):format(root)
    end
    root = root:match "^(.*)/[^/]*$" or "."
  end
  if kind == nil or kind == "auto" then kind = found end
  local readers = { folder = folder, csv = csv, jsonl = jsonl, coco = coco }
  local reader = readers[kind]
  if not reader then A.raise("data.kind: unknown kind %s; folder, csv, jsonl, coco or auto are expected", tostring(kind)) end
  local default = { csv = "captions.csv", jsonl = "captions.jsonl", coco = "captions.json" }
  local rows, counts = rows_of.new(root), { without = 0, empty = 0, missing = 0, unseen = unseen or nil }
  local ok, message = reader(rows, counts, root, found == kind and file or root .. "/" .. (default[kind] or ""))
  if not ok then return nil, message end
  if rows:size() == 0 then
    return nil, ("no captioned pictures below %s (kind %s): %d pictures without a caption, %d captions whose picture is not there; "
      .. "dog.jpg has its caption in dog.txt beside it, or in a captions.csv")
      :format(root, kind, counts.without, counts.missing)
  end
  return rows, counts, kind
end

return M
