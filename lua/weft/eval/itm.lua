-- itm.lua: does the fused head tell pairs from others? On each held-out picture: its caption, a random
-- other caption, and the one that looks most alike.
local random = require "weft.random"
local rows_of = require "weft.data.rows"
local scope = require("weft.scope").scope

local M = {}

---Accuracy on pairs, random and hard negatives, and over all, beside the majority baseline.
function M.run(run)
  local test = run.data.test
  local rows, n = test.rows, test:size()
  local image, text = require("weft.eval.retrieval").embed(run, test)
  local sim = image:matmul(text:t()):totable()
  local hard, any = {}, {}
  local draws = require("weft").rand { n, rng = { key = random.hash("eval itm", run.options.seed), counter = 0ULL } }:totable()
  local image_id, caption_id = rows_of.reader(rows, "image_id"), rows_of.reader(rows, "caption_id")
  for i = 1, n do
    local others = {}
    for j = 1, n do
      if image_id(j) ~= image_id(i) and caption_id(j) ~= caption_id(i) then others[#others + 1] = j end
    end
    if #others == 0 then return { itm = {} } end
    any[i] = others[math.floor(draws[i] * #others) + 1]
    hard[i] = others[1]
    for _, j in ipairs(others) do
      if sim[i][j] > sim[i][hard[i]] then hard[i] = j end
    end
  end
  local right = { pair = 0, random = 0, hard = 0 }
  local step = math.max(1, math.floor(run.options.batch / 2))
  for first = 1, n, step do
    scope(function()
      local indices, random_, hard_ = {}, {}, {}
      for i = first, math.min(first + step - 1, n) do
        indices[#indices + 1], random_[#random_ + 1], hard_[#hard_ + 1] = i, any[i], hard[i]
      end
      local own = test:batch_of(indices)
      for name, list in pairs { pair = indices, random = random_, hard = hard_ } do
        local texts = test:batch_of(list, false)
        local scores = run.model:match(own, texts.ids, texts.mask):totable()
        for _, s in ipairs(scores) do
          if (s > 0) == (name == "pair") then right[name] = right[name] + 1 end
        end
      end
    end)
  end
  return { itm = { pair_acc = right.pair / n, random_acc = right.random / n, hard_acc = right.hard / n,
    itm_acc = (right.pair + right.random + right.hard) / (3 * n), majority = 2 / 3 } }
end

return M
