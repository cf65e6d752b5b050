-- What steps take, planned by shapes alone, beside what they took.
local weft = require "weft"
local command = require "tests.support.command"
local memory = require "weft.train.memory"
local tiny = require "tests.support.tiny"

local root, gone = tiny.pictures(72)
teardown(function() gone() end)

local SIZES = { "encoder.width=96", "encoder.image=56", "data.size=56", "data.resize=56", "language.width=96", "language.ff=192", "batch=6",
  "compress.hidden=96", "compress.width=64", "warmup_epochs=1", "epochs=2" }

local function with(more)
  local list = { unpack(SIZES) }
  for _, text in ipairs(more or {}) do list[#list + 1] = text end
  return list
end

local function trained(more)
  local run, remove = tiny.run(root, with(more))
  local result = run:train()
  remove()
  return result, run
end

describe("memory by shapes alone", function()
  for name, more in pairs {
    ["of the plain recipe"] = {}, ["with a queue and a momentum copy"] = { "itc.momentum=0.9", "itc.queue=24", "itm.source=queue" },
    ["with accumulation and an average"] = { "accumulate=2", "average=0.9" }, ["without kept features"] = { "features.enabled=false" },
    ["with the optimizer extended"] = { "phase_switch=extend", "lora.targets=[query,key,value,dense]" },
  } do
    it("is within 3 % of what was measured " .. name, function()
      local result, run = trained(more)
      assert.equal(2, #result.memory)
      for _, m in ipairs(result.memory) do
        assert.is_true(m.measured > 2 ^ 20)
        local off = m.estimated / m.measured - 1
        assert.is_true(math.abs(off) <= 0.03, ("%s: estimated %d, measured %d: off by %.1f %%"):format(m.name, m.estimated, m.measured, 100 * off))
      end
      assert.equal(result.memory[2].estimated, run.estimate.phases[2].total)
    end)
  end

  it("says what is frozen, adapted, trained, and what the optimizer holds", function()
    local run, remove = tiny.run(root, with { "itc.momentum=0.9" })
    local e = memory.estimate(run)
    remove()
    local function part(phase, name)
      for _, r in ipairs(e.phases[phase].parts) do
        if r.name == name then return r end
      end
    end
    local vision = part(2, "vision")
    local lora = 2 * 2 * 2 * (96 * 2) * 4  -- layers, query and value, A and B, rank 2
    assert.equal(lora, vision.lora)
    assert.equal(2 * lora, vision.adam)
    assert.equal(lora, vision.gradients)
    assert.equal(0, part(1, "vision").adam)
    assert.equal(0, part(1, "vision").gradients)
    assert.equal(4 * (run.model.vision:count()), vision.frozen + vision.lora)
    local language = part(1, "language")
    assert.equal(0, language.frozen)
    assert.equal(2 * language.trained, language.adam)
    assert.is_true(part(1, "queue").buffers > 0 and part(1, "momentum").buffers > 0)
    assert.is_true(part(2, "vision").activations > part(1, "vision").activations)
    assert.truthy(tostring(e):find("MiB +frozen +LoRA +trained +gradients +Adam +buffers +activations"))
  end)

  it("leaves the run, its draws and the memory as they were", function()
    local plain = trained()
    local run, remove = tiny.run(root, with())
    collectgarbage()
    collectgarbage()
    local live = weft.memory().live
    memory.estimate(run)
    memory.largest(run, 2 ^ 30)
    collectgarbage()
    collectgarbage()
    assert.is_true(weft.memory().live - live < 2 ^ 16, weft.memory().live - live)
    assert.same(plain.hashes, run:train().hashes)
    remove()
  end)

  it("finds the largest batch that fits, and no larger one does", function()
    local run, remove = tiny.run(root, with())
    local budget = 1.5 * memory.estimate(run, 6).phases[2].total
    local batch, takes = memory.largest(run, budget)
    assert.is_true(batch > 6 and batch < 54, tostring(batch))
    assert.is_true(takes <= budget)
    assert.is_true(memory.estimate(run, batch + 1).phases[2].total > budget)
    assert.equal(0, (memory.largest(run, 1000)))
    assert.equal(54, (memory.largest(run, 2 ^ 40)))
    remove()
  end)

  it("needs values where a model's losses do: then there is no estimate, and the run goes on", function()
    local recipe = tiny.recipe(root)
    local Model = weft.nn.Module("Own", recipe.model)
    function Model:losses(batch)
      assert(batch.ids:data()[0] >= 0)
      return recipe.model.losses(self, batch)
    end
    local own = {}
    for k, v in pairs(recipe) do own[k] = v end
    own.model = Model
    local dir, remove = command.folder()
    local run = require("weft.train").start(own, { dir = dir .. "/run", quiet = true })
    assert.is_false((pcall(memory.estimate, run)))
    local result = run:train()
    assert.is_nil(result.memory[1].estimated)
    assert.is_true(result.memory[1].measured > 0)
    remove()
  end)
end)

describe("sizes in words", function()
  it("are MiB where no unit is named", function()
    assert.equal(2 ^ 30, memory.bytes_of "1024")
    assert.equal(24 * 2 ^ 30, memory.bytes_of "24GiB")
    assert.equal(1.5 * 2 ^ 30, memory.bytes_of "1.5 gb")
    assert.is_nil(memory.bytes_of "much")
    assert.is_nil(memory.bytes_of "-3")
  end)
end)

describe("weft train --dry-run", function()
  it("plans for a card that is not here, and computes nothing", function()
    local code, out, err = command.weft(("train --dry-run %s device=cuda:7 dtype=bfloat16 device.memory=24GiB"):format(tiny.words(root, with())))
    assert.equal(0, code, err)
    assert.truthy(out:find("Phase 2: batch 6 takes [%d.]+ MiB, by shapes alone"), out)
    assert.truthy(out:find("the largest batch that fits in 24.00 GiB: 54 (all pictures), which takes", 1, true), out)
    assert.truthy(out:find("nothing was computed", 1, true), out)
    assert.is_nil(out:find("one of 6 pictures took", 1, true))
  end)
end)
