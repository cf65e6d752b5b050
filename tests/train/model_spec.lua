-- model_spec.lua: the recipe's model as a run trains it: who sees whom, what is taken for the text's
-- feature, whose features are keys, what is drawn anew and what a file gave.
local weft = require "weft"
local compare = require "tests.models.compare"
local tiny = require "tests.support.tiny"
local command = require "tests.support.command"
local random = require "weft.random"

local root, remove_pictures, removers
setup(function() root, remove_pictures = tiny.pictures(24) end)
teardown(function() remove_pictures() end)
before_each(function() removers = {} end)
after_each(function() for _, fn in ipairs(removers) do fn() end end)

local function new_run(more)
  local run, remove = tiny.run(root, more)
  table.insert(removers, remove)
  run.evaluate = function(self) self.history = self.history or {} end
  run.model:train()
  return run
end

local function steps(run, n, losses)
  for _ in run:epochs() do
    for batch in run:batches() do
      run:train_step(batch, losses or function(b) return run.model:losses(b) end)
      n = n - 1
      if n == 0 then return run end
    end
  end
end

-- A run whose gates are open and whose batch is at hand, dropout off.
local function opened(more)
  local run = new_run(more)
  weft.no_grad(function()
    for name, t in run.model:named_parameters() do
      if name:find "gate$" then t:fill_(0.8) end
    end
  end)
  return run.model:eval(), run.data.train:batch_of { 1, 2, 3, 4 }, run
end

-- A copy of a batch whose caption b has another token at place k (from 1).
local function changed(batch, b, k)
  local other = {}
  for key, v in pairs(batch) do other[key] = v end
  other.ids = batch.ids:clone()
  other.ids[b][k] = (batch.ids[b][k]:item() + 7) % 200 + 60
  return other
end

local function length_of(batch, b) return batch.mask:to("int64"):sum(2)[b]:item() end

describe("the recipe's model", function()
  it("takes for a text what stands at its EOS: not its first token, and nothing of the padding", function()
    local model, batch = opened()
    weft.no_grad(function()
      local image, text = model:embed(batch)
      local n = length_of(batch, 1)
      assert.is_true(n < batch.ids:size(2))
      for _, k in ipairs { 2, n - 1 } do
        local i2, t2 = model:embed(changed(batch, 1, k))
        assert.is_true(compare.error(t2[1], text[1]) > 1e-3, k)
        assert.is_true(compare.same(t2:narrow(1, 2, 3), text:narrow(1, 2, 3)))
        assert.is_true(compare.same(i2, image))
      end
      assert.is_true(compare.error((select(2, model:embed(changed(batch, 1, n + 1)))), text) < 1e-6)
    end)
  end)

  it("lets no later token move what a caption's earlier tokens are predicted from, and the memory sees no text", function()
    local model, batch = opened()
    weft.no_grad(function()
      local V = model.compress(model.vision(batch.pixels).patches)
      local caption, seen = model.fusion.caption, {}
      rawset(model.fusion, "caption", function(self, V_, z, ids, o)
        seen[#seen + 1] = { V = V_, z = z, logits = self.language:logits(self:caption_states(V_, z, ids, { mask = o.mask })) }
        return caption(self, V_, z, ids, o)
      end)
      local n = length_of(batch, 1)
      model:losses(batch)
      model:losses(changed(batch, 1, n - 1))
      rawset(model.fusion, "caption", nil)
      local a, b = seen[1], seen[2]
      assert.is_true(compare.same(a.V, V) and compare.same(b.V, V))
      assert.is_true(compare.same(a.z, b.z))
      assert.is_true(compare.same(a.logits:narrow(2, 1, n - 2), b.logits:narrow(2, 1, n - 2)))
      assert.is_true(compare.error(a.logits[1][n - 1], b.logits[1][n - 1]) > 1e-4)
    end)
  end)

  it("has a caption's loss from its own picture and words alone when each has a memory of its own", function()
    local model, batch, run = opened()
    weft.no_grad(function()
      local alone = {}
      for b = 1, 4 do
        local one = run.data.train:batch_of { b }
        alone[b] = { model:losses(one).lm:item(), one.tokens }
      end
      local sum, tokens = 0, 0
      for _, a in ipairs(alone) do sum, tokens = sum + a[1] * a[2], tokens + a[2] end
      assert.is_true(math.abs(model:losses(batch).lm:item() - sum / tokens) < 1e-5)
      -- the other rows' pictures and words don't matter to one
      local V = model.compress(model.vision(batch.pixels).patches)
      local function row(pictures)
        return (model.fusion:caption(pictures, model.memory(pictures), batch.ids, { mask = batch.mask, reduction = "none" }))
      end
      local other = V:clone()
      other[4]:mul_(-3)
      local first = batch.tokens - (length_of(batch, 4) - 1)
      assert.is_true(compare.same(row(V):narrow(1, 1, first), row(other):narrow(1, 1, first)))
      assert.is_true(compare.error(row(V), row(other)) > 1e-4)
    end)
  end)

  it("asks for every token of a caption but BOS, EOS with them", function()
    local model, batch, run = opened()
    local _, n = model.fusion:caption(model.compress(model.vision(batch.pixels).patches), nil, batch.ids, { mask = batch.mask })
    local expected = 0
    for b = 1, 4 do
      local ids = run.data.train.rows[b].ids
      assert.equal(run.data.special.eos, ids[#ids])
      assert.equal(#ids, length_of(batch, b))
      expected = expected + #ids - 1
    end
    assert.equal(expected, n)
    assert.equal(expected, batch.tokens)
  end)

  it("predicts plain text without its padding", function()
    local path = os.tmpname()
    tiny.write(path, "a dog runs\nthe cat sleeps well\nso it goes\nand on\n")
    table.insert(removers, function() os.remove(path) end)
    local model, batch, run = opened { "data.text=" .. path }
    local text = run.data.train:reader({ epoch = 1, position = 0, batch = 4, accumulate = 1, seed = 1 })().text
    local other = weft.where(text.mask, text.ids, weft.full { 4, text.ids:size(2), value = 70, dtype = "int64" })
    assert.is_false(compare.same(other, text.ids))
    weft.no_grad(function()
      batch.text = text
      local loss = model:losses(batch).text
      batch.text = { ids = other, mask = text.mask, token_share = 1 }
      assert.is_true(compare.error(model:losses(batch).text, loss) < 1e-6)
      local _, n = model.fusion:plain(text.ids, { mask = text.mask })
      assert.equal(text.tokens, n)
    end)
  end)

  it("judges a picture with a caption by looking at both together", function()
    local model, batch = opened()
    weft.no_grad(function()
      -- the score is no function of the two apart: s(i, j) + s(k, l) is not s(i, l) + s(k, j)
      local function score(list)
        local ids = weft.index_select(batch.ids, weft.tensor(list, { dtype = "int64" }), 1)
        local mask = weft.index_select(batch.mask, weft.tensor(list, { dtype = "int64" }), 1)
        return model:match(batch, ids, mask):totable()
      end
      local own, swapped = score { 0, 1, 2, 3 }, score { 1, 0, 3, 2 }
      assert.is_true(math.abs(own[1] + own[2] - swapped[1] - swapped[2]) > 1e-6)
    end)
  end)

  it("normalises pixels once, as Hugging Face's processor does", function()
    local run = new_run()
    local image = require "weft.io.image"
    local row = run.data.train.rows[1]
    local expected = image.normalize(assert(image.load(row.path)), { mean = { .485, .456, .406 }, std = { .229, .224, .225 } })
    compare.close(run.data.train:batch_of({ 1 }).pixels[1], expected, 1e-6)
    for _, set in pairs { run.data.train, run.data.test } do
      local batch = set == run.data.train and run.data.train:reader { epoch = 1, position = 0, batch = 4, accumulate = 1, seed = 1 }()
        or set:batch_of { 1, 2, 3, 4 }
      local first = assert(image.load(batch.paths[1]))
      compare.close(batch.pixels[1], image.normalize(first, { mean = { .485, .456, .406 }, std = { .229, .224, .225 } }), 1e-6)
      assert.is_true(batch.pixels:abs():max():item() < 2.7)
    end
  end)

  -- A folder with an encoder, and that encoder.
  local function pretrained()
    local dir, remove = command.folder()
    table.insert(removers, remove)
    local source = weft.models.dinov2.new { hidden_size = 16, num_hidden_layers = 2, num_attention_heads = 2, image_size = 28, patch_size = 14 }
    source:initialize(99)
    require("weft.models.export").encoder(source, dir)
    return dir, source
  end

  it("begins with the adapter that lora.init_from names, which trains on in a new run", function()
    local dir = pretrained()
    local first = new_run { "encoder.pretrained=" .. dir, "warmup_epochs=1", "epochs=2" }
    first.evaluate = function(self) self.history = self.history or { { label = "none", step = self.step, values = {} } } end
    rawset(first.recipe, "finish", nil)
    first:train()
    local adapter = first.dir .. "/adapter"
    weft.peft.save(first.model.vision, adapter, { base = dir, preprocessing = weft.io.preprocess.of_run(first.data.train.options) })
    local run = new_run { "encoder.pretrained=" .. dir, "lora.init_from=" .. adapter, "seed=8", "lora.rank=7", "epochs=3", "warmup_epochs=1" }
    local before, n = first.model.vision:state_dict(), 0
    for name, t in run.model.vision:named_parameters() do
      n = n + (name:find "lora_B" and t:abs():max():item() > 0 and 1 or 0)
      assert.is_true(compare.same(t, before[name]), name)
    end
    assert.equal(4, n)
    assert.equal(0, run.step)
    run:print_start()
    local line = tiny.read(run.dir .. "/log.txt"):match "\nlora.init_from: ([^\n]*)"
    assert.truthy(line:find "^adapter default: 4 of 4 modules, scale 2.0, median norm of dW/W [%d.e%-]+ %%; its own rank", line)
    run.evaluate = first.evaluate
    rawset(run.recipe, "finish", nil)
    assert.is_true(run:train().frozen_unchanged)
    local moved = 0
    for name, t in run.model.vision:named_parameters() do
      if name:find "lora_" then moved = moved + (compare.same(t, before[name]) and 0 or 1) end
    end
    assert.equal(8, moved)
    -- of another base it is refused
    local ok, message = pcall(new_run, { "encoder.pretrained=" .. (pretrained()), "lora.init_from=" .. dir })
    assert.is_false(ok)
    assert.truthy(tostring(message):find("peft.load: ", 1, true), message)
  end)

  it("draws anew only what no file gave: the encoder is the file's, and every B is 0", function()
    local dir, source = pretrained()
    local run = new_run { "encoder.pretrained=" .. dir }
    local theirs, n = source:state_dict(), 0
    for name, t in run.model.vision:named_parameters() do
      if name:find "lora_B" then assert.equal(0, t:abs():max():item(), name)
      elseif not name:find "lora_" then
        n = n + 1
        assert.is_true(compare.same(t, theirs[(name:gsub("%.base_layer%.", "."))]), name)
      end
    end
    assert.is_true(n > 30)
    -- whatever the seed, while all else is another
    local other = new_run { "encoder.pretrained=" .. dir, "seed=77" }
    for name, t in run.model:named_parameters() do
      local o = other.model:state_dict()[name]
      if name:find "^vision" and not name:find "lora_A" then assert.is_true(compare.same(t, o), name)
      elseif name:find "lora_A" or name:find "^language.*proj" then assert.is_false(compare.same(t, o), name) end
    end
    -- the encoder's weights are the file's to the end of a run
    run.evaluate = function(self) self.history = self.history or { { label = "none", step = self.step, values = {} } } end
    rawset(run.recipe, "finish", nil)
    assert.is_true(run:train().frozen_unchanged)
    assert.is_true(compare.same(run.model.vision.layernorm.weight, theirs["layernorm.weight"]))
  end)
end)

describe("the queue in the recipe", function()
  it("knows of each row when it was made, and says how old they are", function()
    local run = steps(new_run(), 3)
    local made = run.model.queue:get("step"):totable()
    table.sort(made)
    assert.same({ 1, 1, 1, 1, 2, 2, 2, 2 }, made)
    local rows = tiny.metrics(run.dir)
    assert.is_nil(rows[1].queue_age)
    assert.equal(1, rows[2].queue_age)
    assert.equal(1.5, rows[3].queue_age)
  end)

  it("holds at most half of the data's pictures, each counted once, also where only its record is at hand", function()
    local dir, remove = command.folder()
    table.insert(removers, remove)
    local lines = {}
    for i = 1, 24 do
      lines[#lines + 1] = ("%s/%02d.png,thing %d of %d"):format(root, (i - 1) % 12 + 1, i, i)
    end
    tiny.write(dir .. "/captions.csv", table.concat(lines, "\n") .. "\n")
    local run, gone = tiny.run(dir, { "itc.queue=1000", "data.held_out=0", "checkpoint_every=1" })
    table.insert(removers, gone)
    assert.equal(24, run.data.train:size())
    assert.equal(12, run.data.train:count_pictures())
    assert.equal(6, run.model.queue.size)
    run.evaluate = function(self) self.history = self.history or {} end
    steps(run, 1)
    assert.equal(6, assert(weft.train.open(run.dir, { quiet = true, for_use = true })).model.queue.size)
  end)
end)

describe("momentum in the recipe", function()
  local function copy_of(run)
    local out = {}
    for _, p in ipairs(run.model.momentum.places) do out[p.shadow] = run.model.momentum._buffers[p.shadow]:clone() end
    return out
  end

  it("moves once a step, after the optimizer, by m old + (1 - m) new", function()
    for _, accumulate in ipairs { 1, 2 } do
      local run = new_run { "itc.momentum=0.9", "accumulate=" .. accumulate, "batch=2" }
      steps(run, accumulate)
      local before = copy_of(run)
      steps(run, accumulate)
      assert.equal(2, run.step)
      local moved = 0
      for _, p in ipairs(run.model.momentum.places) do
        local now = run.model.momentum._buffers[p.shadow]
        compare.close(now, before[p.shadow] * 0.9 + p.module._parameters[p.key]:detach() * 0.1, 1e-5, p.shadow)
        if not compare.same(now, before[p.shadow]) then moved = moved + 1 end
      end
      assert.is_true(moved > 20)
    end
  end)

  it("follows what ITC's features are made of, and nothing frozen for good", function()
    local run, n = new_run { "itc.momentum=0.9" }, {}
    for _, p in ipairs(run.model.momentum.places) do
      n[p.shadow] = true
      assert.is_falsy(p.shadow:find "^vision" and not p.shadow:find "lora_")
    end
    for name in run.model:named_parameters() do
      local wanted = name:find "^compress" or name:find "^language" or name:find "^itc%.%a+_proj" or name:find "lora_"
      assert.equal(wanted ~= nil, n[(name:gsub("%.", "/"))] ~= nil, name)
    end
  end)

  it("gives the keys and the queue's rows, which the weights as they are don't", function()
    local run = new_run { "itc.momentum=0.9", "compress.dropout=0" }
    steps(run, 3)
    local model, batch = run.model, run.data.train:batch_of { 1, 2, 3, 4 }
    weft.no_grad(function()
      for _, p in ipairs(model.momentum.places) do
        if p.shadow:find "^itc" then model.momentum._buffers[p.shadow]:mul_(-1):add_(0.1) end
      end
      local V = model.compress(model.vision(batch.pixels).patches)
      local own_image, own_text = model.itc:project(model:dual(V, batch))
      local slow_image, slow_text = model.momentum:with(function()
        return model.itc:project(model:dual(model.compress(model.vision(batch.pixels).patches), batch))
      end)
      random.set_step(100, 1)
      local filled = model.queue:filled()
      model:losses(batch)
      model.queue:commit()
      local size = model.queue.size
      for name, pair in pairs { image = { own_image, slow_image }, text = { own_text, slow_text } } do
        -- the ring is full: its last four rows lie before the next place
        assert.equal(size, filled)
        local at = tonumber(model.queue._buffers.position:data()[0])
        local last = model.queue:get(name):narrow(1, (at - 4) % size + 1, 4)
        assert.is_true(compare.error(last, pair[2]) < 1e-5, name)
        assert.is_true(compare.error(last, pair[1]) > 1e-2, name)
      end
    end)
  end)

  it("with soft targets gives another loss than without", function()
    local values = {}
    for _, alpha in ipairs { 0, 0.4 } do
      local run = new_run { "itc.momentum=0.9", "itc.alpha=" .. alpha }
      steps(run, 2)
      values[#values + 1] = run.sums.itc
    end
    assert.is_true(math.abs(values[1] - values[2]) > 1e-4)
  end)
end)
