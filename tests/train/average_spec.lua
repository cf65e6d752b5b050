-- average_spec.lua: what is asked of a run answers with the running average of its weights.
local weft = require "weft"
local compare = require "tests.models.compare"
local tiny = require "tests.support.tiny"

describe("the average of the weights", function()
  local root, remove_pictures
  setup(function() root, remove_pictures = tiny.pictures(24) end)
  teardown(function() remove_pictures() end)

  -- A run after n steps, the weights it began with, and a batch.
  local function trained(n, more)
    local run, remove = tiny.run(root, more)
    finally(remove)
    run.evaluate = function(self) self.history = self.history or {} end
    run.model:train()
    for _ in run:epochs() do
      for batch in run:batches() do
        if n == 0 then break end
        run:train_step(batch, function(b) return run.model:losses(b) end)
        n = n - 1
      end
      if n == 0 then break end
    end
    run.model:eval()
    return run, run.data.test:batch_of { 1, 2 }
  end

  local function asked(run, batch)
    return weft.no_grad(function() return { image = (run.model:embed(batch)), match = run.model:match(batch, batch.ids, batch.mask) } end)
  end

  it("is what embeddings and matches are made with", function()
    local run, batch = trained(6, { "average=0.9" })
    local model, seen = run.model, asked(run, batch)
    local average = model.average
    model.average = nil
    local raw = asked(run, batch)
    local through = average:with(asked, run, batch)
    assert.is_true(compare.same(seen.image, through.image))
    assert.is_true(compare.same(seen.match, through.match))
    assert.is_false(compare.same(seen.image, raw.image))
    assert.is_false(compare.same(seen.match, raw.match))
  end)

  it("leaves training as it is without one", function()
    local with, without = trained(6, { "average=0.9" }), trained(6)
    for name, t in without.model:named_parameters() do
      assert.is_true(compare.same(t, with.model:state_dict()[name]), name)
    end
  end)

  it("begins after the first step, so that a run that has not begun answers as it is", function()
    local run, batch = trained(0, { "average=0.9" })
    assert.is_false(run.model.average:begun())
    asked(run, batch)
    assert.is_false(run.model.average:begun())
    assert.is_true(trained(1, { "average=0.9" }).model.average:begun())
  end)

  it("follows the adapters, and nothing that stays frozen", function()
    local run = trained(0, { "average=0.9" })
    local adapters = 0
    for _, p in ipairs(run.model.average.places) do
      if p.shadow:find "lora_" then adapters = adapters + 1 else assert.is_nil(p.shadow:find "^vision") end
    end
    assert.is_true(adapters > 0)
  end)
end)
