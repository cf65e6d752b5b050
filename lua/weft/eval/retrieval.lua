-- retrieval.lua: recall of pictures by captions and the reverse, chance beside it. A hit is any
-- candidate with the query's picture or caption.
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

---Recall at 1, 5, 10 both ways on the held-out pictures.
function M.run(run)
  local rows = run.data.test.rows
  local sim = scope(function()
    local image, text = M.embed(run, run.data.test)
    return image:matmul(text:t()):totable()
  end)
  local right = {}
  for i, a in ipairs(rows) do
    right[i] = {}
    for j, b in ipairs(rows) do right[i][j] = a.image_id == b.image_id or a.caption_id == b.caption_id end
  end
  local ks = { 1, 5, 10 }
  local tr, chance, tr_ties = M.recall(sim, right, ks)
  local ir, _, ir_ties = M.recall(transpose(sim), right, ks)
  local out = { pictures = #rows, ties = tr_ties + ir_ties }
  local sum = 0
  for _, k in ipairs(ks) do
    out["tr" .. k], out["ir" .. k], out["chance" .. k] = tr[k], ir[k], chance[k]
    sum = sum + tr[k] + ir[k]
  end
  out.r_mean = sum / 6
  out.r10_mean = (tr[10] + ir[10]) / 2
  return { retrieval = out }
end

return M
