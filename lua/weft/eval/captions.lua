-- captions.lua: what the model says about held-out pictures.
local scope = require("weft.scope").scope

local M = {}

---Captions generated for the first n held-out pictures whose captions differ.
function M.samples(run, n)
  local test = run.data.test
  local indices, seen = {}, {}
  -- spread over the held-out pictures, one of each caption
  local stride = math.max(1, math.floor(test:size() / n))
  for start = 1, stride do
    for i = start, test:size(), stride do
      local row = test.rows[i]
      if #indices < n and not seen[row.caption_id] then
        seen[row.caption_id] = true
        indices[#indices + 1] = i
      end
    end
  end
  local texts = scope(function() return run.model:caption(test:batch_of(indices), run.data) end)
  local out = {}
  for k, i in ipairs(indices) do out[k] = { path = test.rows[i].path, name = test.rows[i].name, caption = test.rows[i].caption, generated = texts[k] } end
  return out
end

---Loss of the held-out captions a token, and eight samples.
function M.run(run)
  local test, sum, tokens = run.data.test, 0, 0
  local step = math.max(1, run.options.batch)
  for first = 1, test:size(), step do
    scope(function()
      local indices = {}
      for i = first, math.min(first + step - 1, test:size()) do indices[#indices + 1] = i end
      local batch = test:batch_of(indices)
      sum = sum + run.model:caption_loss(batch):item() * batch.tokens
      tokens = tokens + batch.tokens
    end)
  end
  return { captions = { loss = sum / tokens, perplexity = math.exp(sum / tokens), samples = M.samples(run, 8) } }
end

return M
