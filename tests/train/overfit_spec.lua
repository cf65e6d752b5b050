local weft = require "weft"
local tiny = require "tests.support.tiny"
local command = require "tests.support.command"

describe("the recipe #slow", function()
  it("learns 32 pairs by heart: retrieval and matching of at least 95 %", function()
    local root, remove_pictures = command.folder()
    local colors, shapes = { "red", "green", "blue", "yellow", "white", "black" }, { "square", "bar", "frame", "cross", "corner", "stripe" }
    for i = 0, 31 do
      local color, shape = colors[i % 6 + 1], shapes[math.floor(i / 6) + 1]
      local path = ("%s/%02d"):format(root, i)
      tiny.picture(path .. ".png", color, shape, 0)
      tiny.write(path .. ".txt", ("a %s %s\n"):format(color, shape))
    end
    local run, remove = tiny.run(root, { "data.held_out=0", "batch=16", "epochs=400", "warmup_epochs=200", "lr=0.003", "warmup_steps=20",
      "encoder.patch=7", "encoder.width=32", "encoder.init_range=0.1", "compress.hidden=32", "compress.width=32", "compress.dropout=0",
      "lora.dropout=0", "language.width=32", "language.ff=64", "fusion.ff=64", "itc.dim=32", "itc.queue=16", "weights.itm=1",
      "data.length=14", "data.vocab=300" })
    rawset(run.recipe, "finish", nil)
    run:train()
    run.data.test = run.data.train
    run.model:eval()
    local scores = weft.no_grad(function() return { retrieval = weft.eval.retrieval(run).retrieval, itm = weft.eval.itm(run).itm } end)
    remove()
    remove_pictures()
    assert.equal(32, scores.retrieval.pictures)
    assert.is_true(scores.retrieval.tr1 >= 0.95 and scores.retrieval.ir1 >= 0.95, ("%g %g"):format(scores.retrieval.tr1, scores.retrieval.ir1))
    for _, key in ipairs { "itm_acc", "pair_acc" } do assert.is_true(scores.itm[key] >= 0.95, key .. " " .. scores.itm[key]) end
    assert.equal(0, run.skipped)
  end)
end)
