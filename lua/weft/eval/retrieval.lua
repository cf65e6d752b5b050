-- retrieval.lua: recall of pictures by captions and the reverse, chance beside it. A hit is any
-- candidate with the query's picture or caption.
local rows_of = require "weft.data.rows"
local scope = require("weft.scope").scope

local M = {}

-- Probability that k of N candidates hold one of p right ones: 1 - C(N-p, k) / C(N, k).
function M.chance(N, p, k)
  local miss = 1
  for i = 0, k - 1 do miss = miss * math.max(0, N - p - i) / (N - i) end
  return 1 - miss
end

---Recalls from similarities [Q][N] (plain tables) and right[q][n]. Ties are counted against the query.
---@param sim number[][]
---@param right boolean[][]
---@param ks integer[]
---@return table recall by k, table chance by k, integer ties
function M.recall(sim, right, ks)
  local hits, chance, ties, Q = {}, {}, 0, #sim
  for _, k in ipairs(ks) do hits[k], chance[k] = 0, 0 end
  for q = 1, Q do
    local row, ok, best, n_right = sim[q], right[q], -math.huge, 0
    for n = 1, #row do
      if ok[n] then
        n_right = n_right + 1
        if row[n] > best then best = row[n] end
      end
    end
    local above, equal = 0, 0
    for n = 1, #row do
      if not ok[n] then
        if row[n] > best or row[n] ~= row[n] then above = above + 1 elseif row[n] == best then equal = equal + 1 end
      end
    end
    ties = ties + equal
    for _, k in ipairs(ks) do
      if above + equal < k then hits[k] = hits[k] + 1 end
      chance[k] = chance[k] + M.chance(#row, n_right, math.min(k, #row))
    end
  end
  for _, k in ipairs(ks) do hits[k], chance[k] = hits[k] / Q, chance[k] / Q end
  return hits, chance, ties
end

local function transpose(m)
  local out = {}
  for j = 1, #m[1] do
    out[j] = {}
    for i = 1, #m do out[j][i] = m[i][j] end
  end
  return out
end

---Normalised features of all held-out pictures and captions: [N, D] each.
function M.embed(run, dataset)
  local ops = require("weft.ops").functions
  local images, texts = {}, {}
  local n, step = dataset:size(), math.max(1, run.options.batch)
  for first = 1, n, step do
    local indices = {}
    for i = first, math.min(first + step - 1, n) do indices[#indices + 1] = i end
    local image, text = scope(function()
      local batch = dataset:batch_of(indices)
      return run.model:embed(batch)
    end)
    images[#images + 1], texts[#texts + 1] = image, text
  end
  return ops.cat(images, 1), ops.cat(texts, 1)
end

-- A set's distinct pictures: the first row of each, and for each the words that are said of it.
local function pictures_of(rows)
  local first, said, number = {}, {}, {}
  local image_id, caption_id = rows_of.reader(rows, "image_id"), rows_of.reader(rows, "caption_id")
  for i = 1, rows_of.size(rows) do
    local id = image_id(i)
    local n = number[id]
    if not n then
      n = #first + 1
      number[id], first[n], said[n] = n, i, {}
    end
    said[n][caption_id(i)] = true
  end
  return first, said
end

---Every distinct picture of a set beside every caption: similarities [P][N], which of them go together (a caption
---of the picture, or the words of one), and the row of each picture.
---@return number[][] sim, boolean[][] right, integer[] first
function M.compare(run, dataset)
  local first, said = pictures_of(dataset.rows)
  local sim = scope(function()
    local image, text = M.embed(run, dataset)
    local places = {}
    for n, row in ipairs(first) do places[n] = row - 1 end
    image = require("weft").index_select(image, require("weft").tensor(places, { dtype = "int64", device = image.device }), 1)
    return image:matmul(text:t()):totable()
  end)
  local right, caption_id = {}, rows_of.reader(dataset.rows, "caption_id")
  for n = 1, #first do
    right[n] = {}
    for j = 1, dataset:size() do right[n][j] = said[n][caption_id(j)] or false end
  end
  return sim, right, first
end

---Recall at 1, 5, 10 of captions by pictures (tr) and pictures by captions (ir), beside chance (ir_chance where it
---is another one: pictures with several captions).
---@param by_picture number[][]  [P][N]
---@param by_caption number[][]  [N][P]
---@param right boolean[][]  [P][N]
function M.figures(by_picture, by_caption, right)
  local ks = { 1, 5, 10 }
  local tr, tr_chance, tr_ties = M.recall(by_picture, right, ks)
  local ir, ir_chance, ir_ties = M.recall(by_caption, transpose(right), ks)
  local out, sum = { pictures = #by_picture, ties = tr_ties + ir_ties }, 0
  -- as many captions as pictures: chance is the same both ways
  local apart = #by_caption ~= #by_picture
  if apart then out.texts = #by_caption end
  for _, k in ipairs(ks) do
    out["tr" .. k], out["ir" .. k], out["chance" .. k] = tr[k], ir[k], tr_chance[k]
    if apart then out["ir_chance" .. k] = ir_chance[k] end
    sum = sum + tr[k] + ir[k]
  end
  out.r_mean = sum / 6
  out.r10_mean = (tr[10] + ir[10]) / 2
  return out
end

---Recall on the held-out pictures by the similarity of features.
function M.run(run)
  local sim, right = M.compare(run, run.data.test)
  return { retrieval = M.figures(sim, transpose(sim), right) }
end

M.transpose = transpose
return M
