-- rerank.lua: recall in two stages: the first candidates by the similarity of features, put in order by the
-- fused head, which sees picture and caption together (ALBEF, Li et al. 2021).
local retrieval = require "weft.eval.retrieval"
local scope = require("weft.scope").scope

local M = {}
M.TOP = 16

-- Columns of a row's k largest values, largest first; of equals the earlier.
local function largest(row, k)
  local order = {}
  for j = 1, #row do order[j] = j end
  table.sort(order, function(a, b) return row[a] > row[b] or row[a] == row[b] and a < b end)
  return { unpack(order, 1, math.min(k, #row)) }
end

-- Similarities with the first k of each query replaced by what score(queries, columns) says of them; all others
-- keep their order, behind.
local function reordered(sim, k, step, score)
  local out, candidates = {}, {}
  for q, row in ipairs(sim) do
    out[q], candidates[q] = {}, largest(row, k)
    for j, v in ipairs(row) do out[q][j] = v - 1e6 end
  end
  for rank = 1, math.min(k, #sim[1]) do
    for first = 1, #sim, step do
      local queries, columns = {}, {}
      for q = first, math.min(first + step - 1, #sim) do
        queries[#queries + 1], columns[#columns + 1] = q, candidates[q][rank]
      end
      for i, v in ipairs(score(queries, columns)) do out[queries[i]][columns[i]] = v end
    end
  end
  return out
end

---Recall on the held-out pictures: the first `top` (16) by similarity, in the order of matching.
function M.run(run, top)
  top = top or M.TOP
  local test = run.data.test
  local sim, right, first = retrieval.compare(run, test)
  local step = math.max(1, run.options.batch)
  -- log-odds that pictures (by number) and captions (by row) match
  local function match(pictures, captions)
    local rows = {}
    for i, n in ipairs(pictures) do rows[i] = first[n] end
    return scope(function()
      local texts = test:batch_of(captions, false)
      return run.model:match(test:batch_of(rows), texts.ids, texts.mask):totable()
    end)
  end
  local figures = retrieval.figures(reordered(sim, top, step, match),
    reordered(retrieval.transpose(sim), top, step, function(captions, pictures) return match(pictures, captions) end), right)
  figures.top = top
  return { reranked = figures }
end

return M
