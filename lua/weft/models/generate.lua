-- generate.lua: from scores of the next token to text: greedy, sampling (top-p), beam search.
local A = require "weft.args"
local ops = require("weft.ops").functions
local create = require("weft.tensor").create
local random = require "weft.random"
local scope = require("weft.scope").scope
local no_grad = require("weft.autograd").no_grad

local M = {}
local NEVER = -1e9

local defaults = {
  max_new_tokens = 30, min_new_tokens = 0, eos = A.none, pad = 0, repetition_penalty = 1,
  sample = false, temperature = 1, top_p = 1, seed = 0, beams = 1, length_penalty = 1,
}

-- Calls fn(table, key, tensor) for every tensor in a table of tables.
local function each_tensor(t, fn)
  for k, v in pairs(t) do
    if A.is_tensor(v) then fn(t, k, v) elseif type(v) == "table" then each_tensor(v, fn) end
  end
end

-- The cache outlives the scopes of single steps: its tensors are kept, and freed when replaced.
local function swap(t, k, old, new)
  t[k] = new:keep()
  if old ~= new then old:free() end
end

-- Rows of the cache by index (from 0). What is `fixed` is the same for all beams of a prompt.
local function reorder(cache, index, also_fixed)
  local function pick(t, k, v) swap(t, k, v, ops.index_select(v, index, 1)) end
  each_tensor(cache.layers, pick)
  if also_fixed then each_tensor(cache.fixed, pick) end
end

-- Runs step in a scope of its own: what it makes on the way goes, scores and cache stay.
local function advance(step, ids, cache)
  local before = {}
  each_tensor(cache, function(t, k, v) before[#before + 1] = { t, k, v } end)
  local logits = scope(function()
    local y = step(ids, cache)
    each_tensor(cache, function(_, _, v) v:keep() end)
    return y
  end)
  for _, entry in ipairs(before) do
    local now = entry[1][entry[2]]
    if now ~= entry[3] then entry[3]:free() end
  end
  return logits
end

-- p divides positive and multiplies negative scores of every token that a row holds already.
local function penalise(row, tokens, p)
  if p == 1 then return end
  local seen = {}
  for _, id in ipairs(tokens) do
    if not seen[id] then
      seen[id] = true
      row[id] = row[id] > 0 and row[id] / p or row[id] * p
    end
  end
end

-- Scores [R, V] with penalties applied, as a tensor of its own.
local function adjusted(logits, rows, o, made)
  local y = logits:to({ dtype = "float32", device = "cpu" }):contiguous()
  if y == logits then y = logits:clone() end
  local data, vocab = y:data(), y:size(2)
  for r, tokens in ipairs(rows) do
    local row = data + (r - 1) * vocab
    penalise(row, tokens, o.repetition_penalty)
    if made < o.min_new_tokens then
      for id in pairs(o.ends) do
        if id < vocab then row[id] = -math.huge end
      end
    end
  end
  return y
end

local function tokens_of(prompt)
  local rows = prompt:totable()
  if #rows == 0 or #rows[1] == 0 then A.raise("generate: the prompt [%s] is empty; begin with BOS", table.concat(prompt.shape, ",")) end
  return rows
end

-- Ids as an int64 vector on a device.
local function vector(list, device) return (create.tensor(list, { dtype = "int64" }):to { device = device }) end

-- One token a row: the best, or drawn from the smallest set of tokens whose probability reaches top_p.
local function choose(scores, o, stream)
  if not o.sample then return ops.argmax(scores, -1):totable() end
  local sorted, order = ops.sort(ops.softmax(scores * (1 / o.temperature), -1), -1, true)
  -- a token stays while those before it do not reach top_p; the first always does
  local before = ops.cumsum(sorted, -1) - sorted
  local kept = o.top_p < 1 and sorted:masked_fill(before:ge(o.top_p), 0) or sorted
  local drawn = ops.multinomial(kept, 1, false, stream)
  return ops.gather(order, drawn, 2):reshape(-1):totable()
end

local function one_by_one(step, cache, prompt, o)
  local rows, finished, open = tokens_of(prompt), {}, prompt:size(1)
  local stream = random.stream("generate", o.seed)
  local input, made, lengths = prompt, 0, {}
  while made < o.max_new_tokens and open > 0 do
    local logits = advance(step, input, cache)
    local chosen = scope(function() return (choose(adjusted(logits, rows, o, made), o, stream)) end)
    logits:free()
    made = made + 1
    for r, tokens in ipairs(rows) do
      if finished[r] then
        chosen[r] = o.pad
      elseif o.ends[chosen[r]] then
        finished[r], lengths[r], open = true, #tokens + 1, open - 1
      end
      tokens[#tokens + 1] = chosen[r]
    end
    input = vector(chosen, prompt.device):unsqueeze(2)
  end
  for r, tokens in ipairs(rows) do lengths[r] = lengths[r] or #tokens end
  return rows, lengths, nil
end

-- --- beams
-- Candidates of a prompt, best first: { score, beam (from 1), token }.
local function candidates(scores, running, first, k, wanted)
  local vocab = scores:size(2)
  local list = {}
  local part = scores:narrow(1, first, k)
  local base = {}
  for b = 1, k do base[b] = { running[b].score } end
  local total = part + create.tensor(base)
  local values, indices = ops.topk(total:reshape(1, k * vocab), math.min(wanted, k * vocab))
  values, indices = values:reshape(-1):totable(), indices:reshape(-1):totable()
  for i, v in ipairs(values) do
    list[i] = { score = v, beam = math.floor(indices[i] / vocab) + 1, token = indices[i] % vocab }
  end
  return list
end

local function extended(tokens, id)
  local copy = { unpack(tokens) }
  copy[#copy + 1] = id
  return copy
end

-- Best k of two lists by score; the earlier one wins ties.
local function best(list, k)
  for i, h in ipairs(list) do h.order = i end
  table.sort(list, function(a, b) return a.score > b.score or a.score == b.score and a.order < b.order end)
  for i = #list, k + 1, -1 do list[i] = nil end
  return list
end

-- k running beams a prompt. Of the candidates, those that end count as finished when they rank among
-- the first k; the best k that do not end run on. It stops when no running beam can beat the finished.
local function beam_search(step, cache, prompt, o)
  local prompts, k = tokens_of(prompt), o.beams
  local n = #prompts
  local n_ends = 0
  for _ in pairs(o.ends) do n_ends = n_ends + 1 end
  local wanted = math.max(2, 1 + n_ends) * k
  local groups, spread = {}, {}
  for g, tokens in ipairs(prompts) do
    groups[g] = { running = {}, finished = {}, open = true }
    for b = 1, k do
      groups[g].running[b] = { tokens = tokens, score = b == 1 and 0 or NEVER }
      spread[#spread + 1] = g - 1
    end
  end
  local logits = advance(step, prompt, cache)
  local index = vector(spread, prompt.device)
  reorder(cache, index, true)
  local all = ops.index_select(logits, index, 1)
  logits:free()
  local made, open = 0, n
  while true do
    local sources, chosen = {}, {}
    scope(function()
      local rows = {}
      for _, group in ipairs(groups) do
        for _, beam in ipairs(group.running) do rows[#rows + 1] = beam.tokens end
      end
      local scores = ops.log_softmax(adjusted(all, rows, o, made), -1)
      local last = made + 1 == o.max_new_tokens
      for g, group in ipairs(groups) do
        local list = candidates(scores, group.running, (g - 1) * k + 1, k, wanted)
        local running = {}
        for rank, c in ipairs(list) do
          local ends = o.ends[c.token] or last
          if ends and rank <= k and group.open and c.score > NEVER / 2 then
            table.insert(group.finished, {
              tokens = extended(group.running[c.beam].tokens, c.token), score = c.score / (made + 1) ^ o.length_penalty })
          elseif not ends and #running < k then
            running[#running + 1] = { tokens = extended(group.running[c.beam].tokens, c.token), score = c.score, from = c.beam }
          end
        end
        best(group.finished, k)
        for b = 1, k do
          local r = running[b] or { tokens = extended(group.running[b].tokens, o.pad), score = NEVER, from = b }
          running[b] = r
          sources[#sources + 1], chosen[#chosen + 1] = (g - 1) * k + r.from - 1, r.tokens[#r.tokens]
        end
        group.running = running
        local worst = group.finished[k] and group.finished[k].score or NEVER
        if group.open and (last or not (running[1].score / (made + 1) ^ o.length_penalty > worst)) then
          group.open, open = false, open - 1
        end
      end
    end)
    made = made + 1
    all:free()
    if open == 0 or made == o.max_new_tokens then break end
    reorder(cache, vector(sources, prompt.device), false)
    all = advance(step, vector(chosen, prompt.device):unsqueeze(2), cache)
  end
  local rows, lengths, scores = {}, {}, {}
  for g, group in ipairs(groups) do
    local hypothesis = group.finished[1] or group.running[1]
    rows[g], lengths[g], scores[g] = hypothesis.tokens, #hypothesis.tokens, hypothesis.score
  end
  return rows, lengths, scores
end

local function check(o)
  local ends = {}
  for _, id in ipairs(type(o.eos) == "table" and o.eos or { o.eos }) do ends[id] = true end
  o.ends = ends
  if o.max_new_tokens < 1 then A.raise("generate: max_new_tokens must be at least 1, got %s", tostring(o.max_new_tokens)) end
  if o.beams < 1 or o.beams % 1 ~= 0 then A.raise("generate: beams: a whole number from 1 is expected, got %s", tostring(o.beams)) end
  if o.beams > 1 and o.sample then A.raise("generate: beams and sample exclude each other") end
  if not (o.temperature > 0) then A.raise("generate: temperature must be above 0; greedy is sample = false") end
  if not (o.top_p > 0 and o.top_p <= 1) then A.raise("generate: top_p must lie in (0, 1], got %s", tostring(o.top_p)) end
  if not (o.repetition_penalty > 0) then A.raise("generate: repetition_penalty must be above 0") end
  return o
end

---Continues prompts of one length.
---@param step function   (ids [R, n], cache) -> logits [R, V] of the last position; it extends the cache
---@param cache table     layers: tensors whose first dim is R; fixed: tables likewise, alike for all beams
---@param prompt weft.Tensor  [B, N] int64
---@param options? table  max_new_tokens (30), min_new_tokens (0), eos (an id or a list), pad (0),
---  repetition_penalty (1), sample (false) with temperature, top_p and seed, beams (1), length_penalty (1)
---@return table  ids [B, longest] (prompt included, padded), lengths (EOS included), scores (beams)
function M.run(step, cache, prompt, options)
  local o = check(A.options(options, defaults, "generate"))
  local rows, lengths, scores = no_grad(function()
    return scope(function()
      local rows, lengths, scores = (o.beams > 1 and beam_search or one_by_one)(step, cache, prompt, o)
      each_tensor(cache, function(_, _, v) v:free() end)
      return rows, lengths, scores
    end)
  end)
  local longest = 0
  for _, n in ipairs(lengths) do longest = math.max(longest, n) end
  for r, tokens in ipairs(rows) do
    for i = 1, longest do
      if i > lengths[r] or not tokens[i] then tokens[i] = o.pad end
    end
    for i = #tokens, longest + 1, -1 do tokens[i] = nil end
  end
  return { ids = create.tensor(rows, { dtype = "int64" }), lengths = lengths, scores = scores }
end

return M
