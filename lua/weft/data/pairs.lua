-- pairs.lua: finds captioned pictures on disk: (path, caption) pairs from a folder, csv, jsonl or COCO.
local A = require "weft.args"
local files = require "weft.files"

local M = {}

local PICTURE = { png = true, jpg = true, jpeg = true, bmp = true }
local function extension(path) return (path:match "%.([%w]+)$" or ""):lower() end
local function clean(text) return (text:gsub("\194\160", " "):gsub("%s+", " "):gsub("^%s+", ""):gsub("%s+$", "")) end

-- NAME.png beside NAME.txt, whose first line is the caption.
local function folder(root)
  local names, message = files.walk(root)
  if not names then return nil, message end
  local out, without, empty = {}, 0, 0
  for _, name in ipairs(names) do
    if PICTURE[extension(name)] then
      local text = files.read(root .. "/" .. name:gsub("%.%w+$", ".txt"))
      local caption = text and clean((text:match "^[^\r\n]*"))
      if not caption then without = without + 1
      elseif caption == "" then empty = empty + 1
      else out[#out + 1] = { path = root .. "/" .. name, name = name, caption = caption } end
    end
  end
  return out, { without = without, empty = empty, missing = 0 }
end

-- One field of a csv line, quotes doubled inside quotes.
local function csv_fields(line)
  local out, at = {}, 1
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

local function add(out, counts, root, name, caption, where)
  if type(name) ~= "string" or type(caption) ~= "string" then
    return nil, where .. ": the name of a picture and a caption are expected"
  end
  caption = clean(caption)
  local path = name:sub(1, 1) == "/" and name or root .. "/" .. name
  if caption == "" then counts.empty = counts.empty + 1
  elseif not files.exists(path) then counts.missing = counts.missing + 1
  else out[#out + 1] = { path = path, name = name, caption = caption } end
  return true
end

local function csv(root, file)
  local text, message = files.read(file)
  if not text then return nil, message end
  local out, counts, n = {}, { without = 0, empty = 0, missing = 0 }, 0
  for line in (text .. "\n"):gmatch "([^\n]*)\r?\n" do
    n = n + 1
    line = line:gsub("\r$", "")
    if line ~= "" then
      local f = csv_fields(line)
      if not f or #f < 2 then return nil, ("%s:%d: picture,caption is expected, got %q"):format(file, n, line:sub(1, 60)) end
      if not (n == 1 and not PICTURE[extension(f[1])]) then
        local ok, why = add(out, counts, root, f[1], f[2], ("%s:%d"):format(file, n))
        if not ok then return nil, why end
      end
    end
  end
  return out, counts
end

local function jsonl(root, file)
  local json = require "weft.io.json"
  local text, message = files.read(file)
  if not text then return nil, message end
  local out, counts, n = {}, { without = 0, empty = 0, missing = 0 }, 0
  for line in (text .. "\n"):gmatch "([^\n]*)\n" do
    n = n + 1
    if line:find "%S" then
      local row, why = json.decode(line)
      if type(row) ~= "table" then
        return nil, ("%s:%d: %s"):format(file, n, row == nil and tostring(why) or "an object with image and caption is expected")
      end
      local ok, problem = add(out, counts, root, row.image or row.file_name or row.path, row.caption or row.text, ("%s:%d"):format(file, n))
      if not ok then return nil, problem end
    end
  end
  return out, counts
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

local function coco(root, file)
  local json = require "weft.io.json"
  local doc, message = json.read(file)
  if not doc then return nil, message end
  if type(doc) ~= "table" or type(doc.images) ~= "table" or type(doc.annotations) ~= "table" then
    return nil, file .. ": a COCO file has images and annotations"
  end
  local names, out, counts = {}, {}, { without = 0, empty = 0, missing = 0 }
  for _, image in ipairs(doc.images) do names[image.id] = image.file_name end
  if doc.images[1] and type(doc.images[1].file_name) == "string" then root = coco_root(root, file, doc.images[1].file_name) end
  for i, a in ipairs(doc.annotations) do
    local ok, why = add(out, counts, root, names[a.image_id], a.caption, ("%s: annotation %d"):format(file, i))
    if not ok then return nil, why end
  end
  return out, counts
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

---Captioned pictures below root: a list of { path, name, caption }, counts of what was left out, and the kind.
---@param root string  a folder, or a list's file
---@param kind? string  "folder", "csv", "jsonl", "coco" or "auto"
---@return table|nil pairs, table|string counts_or_message, string? kind
function M.find(root, kind)
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
  local list, counts = reader(root, found == kind and file or root .. "/" .. (default[kind] or ""))
  if not list then return nil, counts end
  if #list == 0 then
    return nil, ("no captioned pictures below %s (kind %s): %d pictures without a caption, %d captions whose picture is not there")
      :format(root, kind, counts.without, counts.missing)
  end
  return list, counts, kind
end

return M
