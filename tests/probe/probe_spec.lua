local weft = require "weft"
local nn = weft.nn
local command = require "tests.support.command"
local tiny = require "tests.support.tiny"
local by_hand = require "weft.probe.hand"

local root, remove_pictures, run, remove, recipe
setup(function()
  root, remove_pictures = tiny.pictures(24)
  run, remove = tiny.run(root, { "epochs=2", "warmup_epochs=1" })
  run:train()
  recipe = run.recipe
end)
teardown(function()
  remove_pictures()
  remove()
end)

local function state_of(model)
  return require("weft.train.checkpoint").checksum(model:state_dict())
end

describe("weft.trace", function()
  it("runs a whole model's losses of a batch and changes nothing", function()
    local before, batch = state_of(run.model), by_hand.batch(run)
    local t = weft.trace(run.model, batch)
    local by = {}
    for _, r in ipairs(t) do by[r.path] = r end
    assert.equal("[" .. #batch.indices .. ",16]", (by.vision.shape:gsub(" .*", "")))
    assert.truthy(by["fusion.image.0"] and by["itc"] and by["itm.head"] and by["language.model.norm"])
    assert.equal(0, by.compress.bad)
    assert.is_true(by["language.model.norm"].calls >= 2)
    assert.equal(before, state_of(run.model))
    assert.equal(#t, #weft.trace(run, run:batch(2)))  -- a run stands for its model
  end)
end)

describe("tables of modules", function()
  local terminal = require "weft.terminal"
  local is_terminal, size = terminal.is_terminal, terminal.size
  after_each(function() terminal.is_terminal, terminal.size = is_terminal, size end)

  local function lines_at(columns, value)
    terminal.is_terminal = function() return columns ~= nil end
    terminal.size = function() return columns, 40 end
    local lines, most = {}, 0
    for line in (tostring(value) .. "\n"):gmatch "([^\n]*)\n" do
      lines[#lines + 1] = line
      most = math.max(most, #line)
    end
    return lines, most
  end

  it("keep to the width of a terminal, whole elsewhere: columns go, then letters of the names, never numbers", function()
    local batch = by_hand.batch(run)
    local spectrum = weft.peft.spectrum(run.model.vision, { values = true })
    for _, t in ipairs { weft.trace(run.model, batch), spectrum, weft.compare(run, batch), weft.flow(run, batch) } do
      local whole, most = lines_at(nil, t)
      local narrow, less = lines_at(72, t)
      assert.equal(#whole, #narrow)
      assert.is_true(less < 72, less)
      assert.same(whole, (lines_at(most + 1, t)))
    end
    assert.truthy(lines_at(nil, spectrum)[2]:find "^encoder%.layer%.0%.attention%.attention%.%w+ ")
    local short = lines_at(70, spectrum)
    for i = 2, #short do
      local pattern = "^e%a*%.l%a*%." .. spectrum[i - 1].path:match "%d" .. "%.a%a*%.a%a*%.[qv]%a+ "
      assert.truthy(short[i]:find(pattern), short[i])
    end
    assert.truthy(short[2]:find "%d%.?%d* %d", short[2])  -- singular values
  end)
end)

describe("peft.with", function()
  it("runs with other strengths and sets them back, also after an error", function()
    local plain = run:scores "retrieval"
    local function r_mean() return run:scores("retrieval").r_mean end
    local base = weft.peft.disable(run.model, r_mean)
    assert.equal(base, weft.peft.with(run.model, { scale = 0 }, r_mean))
    assert.equal(base, weft.peft.with(run.model, { active = {} }, r_mean))
    assert.is_false((pcall(weft.peft.with, run.model, { scale = 3 }, error, "boo")))
    assert.equal(plain.r_mean, r_mean())
    assert.same({ "default" }, weft.peft.active(run.model))
    local x = run:batch(1).pixels
    local function out(...) return (weft.peft.with(run.model.vision, { scale = ... }, function() return run.model.vision(x).cls:sum():item() end)) end
    assert.equal(out(1), run.model.vision(x).cls:sum():item())
    assert.not_equal(out(1), out(4))
  end)
end)

describe("scores at the prompt", function()
  it("are those of an evaluation, and leave no trace in the run's story", function()
    local history, training, log = #run.history, run.model.training, tiny.read(run.dir .. "/log.txt")
    assert.equal(run.history[history].values.retrieval.r_mean, run:scores("retrieval").r_mean)
    assert.truthy(run:scores().captions.samples)
    assert.has_error(function() run:scores "blue" end)
    assert.equal(history, #run.history)
    assert.equal(training, run.model.training)
    assert.equal(log, tiny.read(run.dir .. "/log.txt"))
  end)
end)

describe("weft.capture", function()
  local model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
  local x = weft.randn { 5, 3 }

  it("keeps what the modules made that a pattern names", function()
    local made = weft.capture(model, "*", x)
    assert.same({ "0", "1", "2" }, { made[1], made[2], made[3] })
    assert.same(model[1](x):totable(), made["0"]:totable())
    assert.same(model(x):totable(), made["2"]:totable())
    assert.same({ "1" }, { unpack(weft.capture(model, "1", x)) })
    assert.truthy(tostring(made):find("[5,4]", 1, true))
  end)

  it("and the gradients that came back to it", function()
    local made = weft.capture(model, "0", function() return (model(x) ^ 2):sum() end, { gradients = true })
    local h = made["0"]:detach():clone():requires_grad_()
    ;(model[3](model[2](h)) ^ 2):sum():backward()
    assert.same(h.grad:totable(), made.gradients["0"]:totable())
  end)

  it("leaves gradients, mode and hooks as they were", function()
    model:zero_grad()
    model:train()
    model(x):sum():backward()
    local before = model[1].weight.grad:totable()
    weft.capture(model, "0", function() return (model(x) * 3):sum() end, { gradients = true })
    assert.same(before, model[1].weight.grad:totable())
    assert.is_true(model.training)
    assert.equal(0, #model[1]._hooks)
    model:zero_grad()
    weft.capture(model, "0", function() return (model(x) * 3):sum() end, { gradients = true })
    assert.is_nil(model[1].weight.grad)
    assert.error_matches(function() weft.capture(model, "nothing", x) end, "no module matches nothing")
    assert.error(function() weft.capture(model, "0", weft.randn { 2, 9 }) end)
    assert.equal(0, #model[1]._hooks)
  end)

  it("takes a run and a batch for its losses, names with *", function()
    local made = weft.capture(run, "vision.encoder.layer.*.attention", by_hand.batch(run), { gradients = true })
    assert.same({ "vision.encoder.layer.0.attention", "vision.encoder.layer.1.attention" }, { unpack(made) })
    assert.is_true(made.gradients["vision.encoder.layer.0.attention"]:norm():item() > 0)
  end)
end)

describe("weft.flow", function()
  it("is the norm of each part's gradient beside its weights", function()
    local model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    local x = weft.randn { 5, 3 }
    local rows = weft.flow(model, function() return model(x):sum() end)
    model(x):sum():backward()
    local function size(m) return math.sqrt(m.weight.grad:norm():item() ^ 2 + m.bias.grad:norm():item() ^ 2) end
    assert.equal("0", rows[1].path)
    assert.is_true(math.abs(rows[1].gradient - size(model[1])) < 1e-4 * size(model[1]))
    assert.is_true(math.abs(rows[2].gradient - size(model[2])) < 1e-4 * size(model[2]))
  end)

  it("counts tensors without a gradient, and refuses what is all frozen", function()
    local model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    local rows = weft.flow(model, function() return model[1](weft.ones { 2, 3 }):sum() end)
    assert.equal(2, rows[2].zero)
    model:freeze()
    assert.error_matches(function() weft.flow(model, weft.ones { 2, 3 }) end, "everything is frozen")
  end)

  it("goes through a run's losses", function()
    local rows, adapters = weft.flow(run, by_hand.batch(run), 1), nil
    for _, r in ipairs(rows) do
      if r.path == "vision" then adapters = r end
    end
    assert.is_true(adapters.gradient > 0)
    assert.truthy(tostring(rows):find "|g|/|w|")
  end)
end)

describe("weft.compare", function()
  it("says what the adapters change, and nothing before them", function()
    local rows, by = weft.compare(run, by_hand.batch(run)), {}
    for _, r in ipairs(rows) do by[r.path] = r end
    assert.equal(0, by["vision.embeddings"].change)
    assert.is_true(by["vision.encoder.layer.0.attention.attention.query"].change > 0)
    weft.peft.scale(run.model, 0)
    for _, r in ipairs(weft.compare(run, by_hand.batch(run))) do assert.equal(0, r.change, r.path) end
    weft.peft.scale(run.model, 1)
  end)
end)

describe("weft.attention", function()
  it("has a map a head over the patches, the layer's own weights", function()
    local path = run.data.test.rows[1].path
    local maps = weft.attention(run, path)
    assert.same({ 2, 2, 2 }, maps.shape)
    local pixels = run.data.test:batch_of({ 1 }).pixels
    local whole = run.model.vision:attention(pixels)
    local expected = whole:select(1, 1):narrow(2, 1, 1):narrow(3, 2, 4):reshape(2, 2, 2)
    assert.is_true((maps - expected):abs():max():item() < 1e-6)
    local over = weft.attention(run, path, { over = true, layer = 1 })
    assert.same({ 28, 28, 3 }, over.shape)
    assert.equal("uint8", over.dtype)
    assert.error_matches(function() weft.attention(nn.Linear(2, 2), path) end, "no DINOv2")
  end)
end)

describe("weft.nearest", function()
  it("ranks captions for a picture as retrieval does, and pictures for a text", function()
    run.model:eval()
    local image, text = weft.no_grad(function() return require("weft.eval.retrieval").embed(run, run.data.test) end)
    local scores = text:matmul(image:select(1, 2)):totable()
    run.model:train()
    local best = 1
    for i, v in ipairs(scores) do if v > scores[best] then best = i end end
    local list = weft.nearest(run, 2, 3)
    assert.equal(run.data.test.rows[best].caption, list[1].caption)
    assert.is_true(math.abs(list[1].score - scores[best]) < 1e-5)
    -- the same picture by its path
    local again = weft.nearest(run, run.data.test.rows[2].path, 3)
    assert.equal(list[1].caption, again[1].caption)
    assert.is_true(math.abs(list[1].score - again[1].score) < 1e-4)
    local pictures = weft.nearest(run, run.data.test.rows[1].caption, 2)
    local other = image:matmul(text:select(1, 1)):totable()
    table.sort(other, function(a, b) return a > b end)
    assert.is_true(math.abs(pictures[1].score - other[1]) < 1e-4)
    assert.truthy(tostring(pictures):find("%.png"))
    assert.error_matches(function() weft.nearest(run, 99) end, "outside 1..")
    assert.error_matches(function() weft.nearest(run, "gone.png") end, "gone.png")
  end)
end)

describe("a run in one's hands", function()
  it("steps as training does, without a file of the run changing", function()
    local _, before = command.run(("cd %s && find . -type f | sort | xargs cksum"):format(run.dir))
    local open = by_hand.open(run.dir)
    local start, made = open.step, by_hand.step(open, 2)
    assert.equal(start + 2, open.step)
    assert.equal(open.step, made.step)
    assert.is_true(made.total > 0 and made.grad_norm > 0)
    assert.truthy(tostring(made):find "Phase 2  step")
    assert.not_equal(state_of(run.model), state_of(open.model))
    local _, after = command.run(("cd %s && find . -type f | sort | xargs cksum"):format(run.dir))
    assert.equal(before, after)
  end)

  it("steps from a recipe's start as the run did", function()
    local open = by_hand.open(recipe.path, tiny.overrides(root, { "epochs=2", "warmup_epochs=1" }))
    local rows = tiny.metrics(run.dir)
    for i = 1, 3 do assert.equal(rows[i].loss_total, by_hand.step(open).total) end
  end)

  it("loads an edited recipe again with the weights that still fit", function()
    local folder, gone = command.folder()
    local text = tiny.read "recipes/stage1.lua"
    tiny.write(folder .. "/mine.lua", text)
    local open = by_hand.open(folder .. "/mine.lua", tiny.overrides(root))
    by_hand.step(open, 1)
    local weight = open.model.compress[1].weight:totable()
    tiny.write(folder .. "/mine.lua", (text:gsub("model = parts.Model", [[model = (function()
      local M = weft.nn.Module("Mine", parts.Model)
      function M:init(c, data)
        parts.Model.init(self, c, data)
        self.extra = weft.nn.Linear(3, 3)
      end
      return M
    end)()]])))
    local new, said = by_hand.reload(open, { "fusion.ff=24" })
    assert.same(weight, new.model.compress[1].weight:totable())
    assert.truthy(said:find("new: extra.bias, extra.weight", 1, true), said)
    assert.truthy(said:find("another shape: fusion.image.0.fc1", 1, true), said)
    assert.equal(open.step, new.step)
    assert.equal("Mine", new.model.type)
    gone()
  end)
end)

describe("weft repl RUN", function()
  it("has model, data, config and a batch at hand", function()
    local code, out, err = command.weft("repl " .. run.dir,
      "config.lora.rank\n#batch.indices > 0\nrun.step\nmodel.type\nstep().step\nweft.nearest(run, 1, 2);\nlook()\n")
    assert.equal(0, code, err)
    assert.truthy(out:find(("^2\ntrue\n%d\nStage1\n%d\n"):format(run.step, run.step + 1)), out)
    assert.truthy(out:find("weft.capture", 1, true))
  end)

  it("takes a recipe with overrides, and refuses what is neither", function()
    local code, out, err = command.weft("repl " .. tiny.words(root, { "lora.rank=5" }), "config.lora.rank\nrun.step\n")
    assert.equal(0, code, err)
    assert.equal("5\n0\n", out)
    local _
    code, _, err = command.weft("repl nowhere", "")
    assert.equal(1, code)
    assert.truthy(err:find("nowhere", 1, true))
    assert.equal(2, (command.weft("repl a=b", "")))
  end)

  it("says so where the pictures are gone, and opens the model all the same", function()
    local copy, gone = command.folder()
    command.run(("cp -r %s/. %s"):format(run.dir, copy))
    local code, out, err = command.weft(("repl %s data.root=/nowhere"):format(copy), "model.type\nbatch\n")
    assert.equal(0, code, err)
    assert.equal("Stage1\nnil\n", out)
    assert.truthy(err:find("the pictures are not at hand", 1, true), err)
    gone()
  end)
end)
