-- llama_spec.lua: the language model against Hugging Face's logits, loss, gradients and decoding.
local weft = require "weft"
local compare = require "tests.models.compare"
local Llama = require "weft.models.llama"
local Module = require("weft.nn.module").base

local golden = compare.golden "llama_tiny/io.safetensors"
local function load(name) return Llama.from_pretrained("tests/golden/" .. (name or "llama_tiny")) end
local function tiny(options)
  local config = { vocab = 40, width = 16, layers = 3, heads = 2, ff = 24, init_std = 0.3 }
  for k, v in pairs(options or {}) do config[k] = v end
  return Llama(config):initialize(5)
end

describe("llama", function()
  it("gives the golden logits, loss and gradients", function()
    local model = load()
    local ids, mask = golden.input_ids, golden.attention_mask:to "bool"
    local out = model(ids, { mask = mask })
    compare.close(out.logits, golden.logits, 2e-5, "logits")
    local loss, tokens = model:loss(out.last_hidden_state, ids, { mask = mask })
    assert.equal(16 + 10 + 4, tokens)
    compare.close(loss, golden.loss, 2e-6, "loss")
    loss:backward()
    for name, t in model:named_parameters() do compare.close(t.grad, golden["grad." .. name], 2e-5, name) end
  end)

  it("predicts the next token, not the one it reads", function()
    local model, ids = load(), golden.input_ids:narrow(1, 1, 1)
    local hidden = model:encode(ids)
    local shifted = weft.cross_entropy(model:logits(hidden):narrow(2, 1, 16):reshape(16, -1), ids:narrow(2, 2, 16):reshape(16))
    compare.close(model:loss(hidden, ids), shifted, 1e-6)
  end)

  it("gives sums and single losses whose mean is the loss", function()
    local model, ids, mask = load(), golden.input_ids, golden.attention_mask:to "bool"
    local hidden = model:encode(ids, { mask = mask })
    local sum, n = model:loss(hidden, ids, { mask = mask, reduction = "sum" })
    compare.close(sum / n, golden.loss, 2e-6)
    assert.same({ n }, model:loss(hidden, ids, { mask = mask, reduction = "none" }).shape)
    compare.close(model:log_probs(ids, { mask = mask }):sum() * (-1 / n), golden.loss, 2e-6)
  end)

  it("is the same for any padding on the right", function()
    local model, ids = tiny(), weft.randint { 1, 5, low = 1, high = 40 }
    local padded = weft.cat({ ids, weft.full { 1, 3, value = 7, dtype = "int64" } }, 2)
    local mask = weft.arange(0, 8):lt(5):reshape(1, 8)
    local a, b = model:encode(ids), model:encode(padded, { mask = mask })
    compare.close(b:narrow(2, 1, 5), a, 1e-6)
    compare.close(model:loss(b, padded, { mask = mask }), model:loss(a, ids), 1e-6)
  end)

  it("computes no column that is padding in every row", function()
    local model, ids = tiny(), weft.randint { 2, 9, low = 1, high = 40 }
    local mask = weft.tensor({ { 1, 1, 1, 1, 0, 0, 0, 0, 0 }, { 1, 1, 0, 0, 0, 0, 0, 0, 0 } }, { dtype = "bool" })
    local widths = {}
    local hidden = model:encode(ids, { mask = mask, cross = function(_, after)
      widths[#widths + 1] = after:size(2)
      return after
    end })
    assert.same({ 4, 4, 4 }, widths)
    assert.same({ 2, 9, 16 }, hidden.shape)
    assert.equal(0, hidden:narrow(2, 5, 5):abs():sum():item())
    -- a token after a gap still counts
    mask[2][7] = 1
    assert.is_true(model:encode(ids, { mask = mask })[2][7]:abs():sum():item() > 0)
  end)

  it("has no loss, but a graph, where nothing is to be predicted", function()
    local model = tiny()
    local ids = weft.randint { 2, 1, low = 1, high = 40 }
    local loss, tokens = model:loss(model:encode(ids), ids)
    assert.equal(0, tokens)
    assert.equal(0, loss:item())
    loss:backward()
  end)

  it("reads from a cache what it reads at once", function()
    local model, ids = load(), golden.input_ids:narrow(1, 1, 2)
    local whole = model:encode(ids)
    local cache = model:cache()
    local parts = { model:encode(ids:narrow(2, 1, 6), { cache = cache }) }
    for i = 7, 17 do parts[#parts + 1] = model:encode(ids:narrow(2, i, 1), { cache = cache }) end
    compare.close(weft.cat(parts, 2), whole, 1e-5)
  end)

  it("counts as published", function()
    local model = Module.on_meta(Llama, { vocab = 32768, width = 384, layers = 7, ff = 1024 })
    assert.equal(24974976, model:count())
    assert.equal(6, model.config.heads)
  end)

  it("hands states to fusion and takes what it returns", function()
    local model, ids = tiny(), weft.randint { 1, 4, low = 1, high = 40 }
    local seen = {}
    local out = model:encode(ids, { cross = function(layer, after, entry)
      seen[#seen + 1] = layer
      assert.same(after.shape, entry.shape)
      return layer == 2 and after * 2 or after
    end })
    assert.same({ 1, 2, 3 }, seen)
    assert.is_true(compare.error(out, model:encode(ids)) > 1e-3)
  end)

  it("keeps float32 near float64 in a small model with a head of its own", function()
    local single, double = tiny { tied = false }, tiny({ tied = false }):to "float64"
    local ids = weft.randint { 2, 6, low = 0, high = 40 }
    compare.close(single(ids).logits, double(ids).logits, 5e-6)
    assert.is_true(single.lm_head ~= nil)
  end)

  it("has right gradients", function()
    local model = tiny({ layers = 1 }):to "float64"
    local ids = weft.randint { 2, 5, low = 0, high = 40 }
    local w = model.model.layers[1].self_attn.q_proj.weight
    local n = model.model.norm.weight
    assert.is_true(weft.gradcheck(function() return (model:loss(model:encode(ids), ids)) end, { w, n }))
  end)

  it("refuses a mask of another length", function()
    local ok, message = pcall(function()
      return tiny():encode(weft.zeros { 2, 5, dtype = "int64" }, { mask = weft.ones { 2, 4, dtype = "bool" } })
    end)
    assert.is_false(ok)
    assert.matches("mask %[2,4%] does not fit ids %[2,5%]", message)
  end)
end)

describe("generate", function()
  local model = load "llama_tiny_decode"
  local ends = { 2 }
  for id = 150, 169 do ends[#ends + 1] = id end
  local ways = {
    greedy = {}, greedy_rep = { repetition_penalty = 1.3 }, beam3 = { beams = 3 },
    beam3_lp = { beams = 3, length_penalty = 2 }, beam4_lp0 = { beams = 4, length_penalty = 0 },
  }
  local prompt = golden["decode.prompt"]
  for way, options in pairs(ways) do
    it("decodes as the golden: " .. way, function()
      options.eos, options.max_new_tokens = ends, 20
      local out = model:generate(prompt, options)
      local got, expected = out.ids:totable(), golden["decode." .. way]:totable()
      for r, row in ipairs(expected) do
        for i, id in ipairs(row) do assert.equal(id, got[r][i] or 0, ("prompt %d, token %d"):format(r, i)) end
      end
    end)
  end

  it("gives a prompt the same continuation alone and in a batch", function()
    for _, way in ipairs { "greedy", "beam3" } do
      ways[way].eos, ways[way].max_new_tokens = ends, 20
      local all = model:generate(prompt, ways[way])
      local one = model:generate(prompt:narrow(1, 5, 1), ways[way])
      for i = 1, one.lengths[1] do assert.equal(all.ids[5][i]:item(), one.ids[1][i]:item()) end
    end
  end)

  it("scores a beam by its log probability over its length", function()
    local out = model:generate(prompt, { beams = 3, eos = ends, max_new_tokens = 6 })
    for r = 1, 3 do
      local n = out.lengths[r]
      local ids = out.ids:narrow(1, r, 1):narrow(2, 1, n)
      local sum = model:log_probs(ids):narrow(2, 4, n - 4):sum():item()
      assert.is_true(math.abs(out.scores[r] - sum / (n - 4)) < 1e-4)
    end
  end)

  it("draws the same with the same seed, and others with another", function()
    local function draw(seed)
      local out = model:generate(prompt, { sample = true, top_p = 0.9, seed = seed, max_new_tokens = 8 })
      return table.concat(out.ids:reshape(-1):totable(), " ")
    end
    assert.equal(draw(1), draw(1))
    assert.is_true(draw(1) ~= draw(2))
  end)

  it("is greedy for a tiny top_p", function()
    local greedy = model:generate(prompt, { max_new_tokens = 8 })
    local drawn = model:generate(prompt, { sample = true, top_p = 1e-6, max_new_tokens = 8 })
    assert.same(greedy.ids:totable(), drawn.ids:totable())
  end)

  it("stays inside the smallest set that reaches top_p", function()
    -- one token of .6, one of .3, the rest share .1: top_p .65 leaves two
    local logits = weft.tensor({ { math.log(.6), math.log(.3), math.log(.05), math.log(.05) } })
    local run = require("weft.models.generate").run
    local count = { [0] = 0, 0, 0, 0 }
    for seed = 1, 60 do
      local out = run(function() return logits:clone() end, { layers = {}, fixed = {} }, weft.zeros { 1, 1, dtype = "int64" },
        { sample = true, top_p = 0.65, seed = seed, max_new_tokens = 4 })
      for i = 2, 5 do
        local id = out.ids[1][i]:item()
        count[id] = count[id] + 1
      end
    end
    assert.equal(0, count[2] + count[3])
    assert.is_true(count[0] > count[1] and count[1] > 40)
  end)

  it("does not end before min_new_tokens", function()
    local out = model:generate(prompt, { eos = ends, max_new_tokens = 12, min_new_tokens = 10 })
    for r = 1, 12 do assert.is_true(out.lengths[r] >= 15) end
  end)

  it("leaves no memory behind", function()
    local function run() model:generate(prompt, { beams = 2, eos = ends, max_new_tokens = 6 }) end
    run()
    collectgarbage() collectgarbage()
    local before = weft.memory().live
    for _ = 1, 3 do run() end
    collectgarbage() collectgarbage()
    assert.is_true(weft.memory().live <= before)
  end)

  it("takes the rotary base from where newer files keep it, and refuses what is not computed", function()
    local command, json = require "tests.support.command", require "weft.io.json"
    local dir, remove = command.folder()
    assert(os.execute(("cp tests/golden/llama_tiny/*.* %s/"):format(dir)) == 0)
    local function with(changes)
      local config = json.read "tests/golden/llama_tiny/config.json"
      for key, v in pairs(changes) do config[key] = v end
      assert(json.write(dir .. "/config.json", config))
      return Llama.from_pretrained(dir)
    end
    local old = with { rope_theta = 5000 }
    local new = with { rope_theta = json.null, rope_parameters = { rope_theta = 5000, rope_type = "default" } }
    assert.equal(5000, old.config.rope_theta)
    assert.equal(5000, new.config.rope_theta)
    for key, v in pairs { hidden_act = "gelu", attention_bias = true, mlp_bias = true, head_dim = 16, rope_scaling = { rope_type = "llama3" },
      num_key_value_heads = 2 } do
      local ok, message = pcall(with, { [key] = v })
      assert.is_false(ok, key)
      assert.truthy(message:find(({ rope_scaling = "rope_type", num_key_value_heads = "key heads" })[key] or key, 1, true), message)
    end
    remove()
  end)
end)
