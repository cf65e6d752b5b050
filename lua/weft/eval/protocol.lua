-- protocol.lua: what scores were made of. Scores of two protocols can't be compared.
local rows_of = require "weft.data.rows"

local M = {}

---How scores in two stages were ranked.
function M.reranked(scores) return ("the first %d by ITC similarity, in the order of the matching head"):format(scores.top) end

---The protocol of scores on a set, as result.json and `weft eval` have it.
---@param run table
---@param test table  the set that is scored
---@param set? string  what it is
---@param values? table  the scores: the ranking of those that are in two stages is said too
function M.of(run, test, set, values)
  local o = test.options
  local pictures, n = rows_of.distinct(test.rows, "image_id"), rows_of.size(test.rows)
  return { set = set or "held-out pictures of the run", pairs = n, pictures = pictures, captions = rows_of.distinct(test.rows, "caption_id"),
    captions_per_picture = pictures > 0 and n / pictures or 0, hash = test:order_hash(0), step = run.step,
    checkpoint = ("step_%08d"):format(run.step),
    preparation = o.fit == "stretch" and ("both sides to %d"):format(o.size) or ("short edge %d, crop %d"):format(o.resize, o.size),
    ranking = "by ITC similarity; a hit is the query's own picture or an equal caption; ties count as misses",
    reranked = values and values.reranked and M.reranked(values.reranked) or nil }
end

---In one line.
function M.line(p)
  return ("%s: %d pictures, %d distinct captions, %.3g a picture (hash %s); %s; ranked %s"):format(p.set, p.pictures, p.captions,
    p.captions_per_picture, p.hash:sub(1, 8), p.preparation, p.ranking)
end

---What two scores must share to stand in one column.
function M.key(p) return ("%s; %s; %s"):format(p.hash, p.preparation, p.ranking) end

return M
