-- nearest.lua: weft.nearest: the captions that are nearest to a picture, and the pictures nearest to a text.
local A = require "weft.args"
local rows_of = require "weft.data.rows"

local M = {}

local Nearest = {}
Nearest.__index = Nearest

Nearest.__tostring = function(self)
  local lines = {}
  for i, r in ipairs(self) do
    lines[i] = self.of == "picture" and ("%6.3f  %s"):format(r.score, r.caption)
      or ("%6.3f  %s  (%s)"):format(r.score, r.path, r.caption)
  end
  return table.concat(lines, "\n")
end

local function is_picture(v) return v:find "%.[pP][nN][gG]$" or v:find "%.[jJ][pP][eE]?[gG]$" or v:find "%.[bB][mM][pP]$" end

-- Features of the set's pictures and captions, computed once for each state of the weights.
local function embedded(run, set)
  local kept = rawget(run, "_embedded")
  if kept and kept.set == set and kept.step == run.step and kept.rows == rows_of.size(set.rows) then return kept end
  local image, text = require("weft.eval.retrieval").embed(run, set)
  kept = { set = set, step = run.step, rows = rows_of.size(set.rows), image = image:keep(), text = text:keep() }
  rawset(run, "_embedded", kept)
  return kept
end

local function tokens_of(run, text)
  local data = require "weft.data"
  local ids = data.encode(run.data, text)
  local weft = require "weft"
  local row, mask = {}, {}
  for i = 1, run.data.length do
    row[i], mask[i] = ids[i] or run.data.special.pad, ids[i] and 1 or 0
  end
  return weft.tensor({ row }, { dtype = "int64" }), weft.tensor({ mask }, { dtype = "int64" }):ne(0)
end

local function pixels_of(run, path)
  local image = require "weft.io.image"
  local picture, message = image.load(path)
  if not picture then error(message, 0) end
  local o = run.data.train.options
  local small = image.center_crop(image.resize(picture, require("weft.data.captioned").resize_of(o)), o.size, o.size)
  return (image.normalize(small, { mean = o.mean, std = o.std }):unsqueeze(1))
end

---What a run finds nearest among its held-out pairs: captions of a picture (a path, or the number of a held-out
---picture), or pictures of a text. Prints as a list.
---@param run table  of weft.open
---@param what string|integer  "dog.png", 3, "a red square"
---@param k? integer  how many (5)
---@return table list  { score, caption, path }, best first
function M.nearest(run, what, k)
  if type(run) ~= "table" or not rawget(run, "model") or not rawget(run, "data") then A.raise("nearest: a run is expected, got %s", A.typename(run)) end
  local set = run.data.test
  local rows = rows_of.size(set.rows)
  if rows == 0 then A.raise "nearest: this run holds out no pictures, or its data is not there" end
  local weft = require "weft"
  local training = run.model.training
  run.model:eval()
  local function ask()
    local all = embedded(run, set)
    return weft.scope(function()
      if type(what) == "number" then
        if what < 1 or what > rows or what % 1 ~= 0 then A.raise("nearest: picture %s outside 1..%d", tostring(what), rows) end
        return { all.text:matmul(all.image:select(1, what)):totable(), "picture" }
      elseif type(what) == "string" and is_picture(what) then
        local ids, mask = tokens_of(run, set.rows[1].caption)
        local image = run.model:embed { pixels = pixels_of(run, what), ids = ids, mask = mask }
        return { all.text:matmul(image:select(1, 1)):totable(), "picture" }
      elseif type(what) == "string" then
        local ids, mask = tokens_of(run, what)
        local o = run.data.train.options
        local _, text = run.model:embed { pixels = weft.zeros { 1, 3, o.size, o.size }, ids = ids, mask = mask }
        return { all.image:matmul(text:select(1, 1)):totable(), "text" }
      end
      A.raise("nearest: a picture's path, a number or a text is expected, got %s", A.typename(what))
    end)
  end
  local ok, found = pcall(weft.no_grad, ask)
  run.model:train(training)
  if not ok then error(found, 0) end
  local order, out, seen = {}, setmetatable({ of = found[2] }, Nearest), {}
  for i = 1, rows do order[i] = i end
  table.sort(order, function(a, b) return found[1][a] > found[1][b] or found[1][a] == found[1][b] and a < b end)
  for _, i in ipairs(order) do
    local row = set.rows[i]
    local id = found[2] == "picture" and row.caption_id or row.image_id
    if #out < (k or 5) and not seen[id] then
      seen[id] = true
      out[#out + 1] = { score = found[1][i], caption = row.caption, path = row.path }
    end
  end
  return out
end

return M
