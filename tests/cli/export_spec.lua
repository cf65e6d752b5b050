-- export_spec.lua: `weft export` of a trained run: three directories that open, and hold what the run has.
local run = require "tests.support.command"
local tiny = require "tests.ablate.support"
local weft = require "weft"
local compare = require "tests.models.compare"
local safetensors = require "weft.io.safetensors"

describe("weft export", function()
  local folder, remove, root, remove_pictures, trained
  setup(function()
    folder, remove = run.folder()
    root, remove_pictures = tiny.pictures()
    trained = weft.train.start(weft.train.load_recipe("recipes/stage1.lua", tiny.overrides(root)), { dir = folder .. "/run", quiet = true })
    trained:train()
  end)
  teardown(function()
    remove()
    remove_pictures()
  end)

  it("writes the merged encoder, the language model and the whole", function()
    local code, out, err = run.weft(("export %s/run %s/out"):format(folder, folder))
    assert.equal(0, code, err)
    assert.matches("encoder: merged", out)
    local encoder = weft.models.dinov2.from_pretrained(folder .. "/out/encoder")
    local pixels = weft.randn { 2, 3, 28, 28 }
    local vision = trained.model.vision:eval()
    compare.close(weft.no_grad(encoder, pixels).last_hidden_state, weft.no_grad(vision, pixels).last_hidden_state, 1e-4)
    local language = weft.models.llama.from_pretrained(folder .. "/out/language")
    assert.equal(trained.data.tokenizer.size, language.config.vocab)
    local whole = assert(safetensors.load(folder .. "/out/whole/model.safetensors"))
    assert.is_true(compare.same(whole["language.model.embed_tokens.weight"], language:state_dict()["model.embed_tokens.weight"]))
    assert.is_true(weft.io.tokenizer.load(folder .. "/out/whole/tokenizer.json") ~= nil)
  end)

  it("says what is no run", function()
    local code, _, err = run.weft("export " .. folder .. "/nowhere " .. folder .. "/x")
    assert.equal(1, code)
    assert.matches("is no run", err)
    -- a model's directory has a config.json too
    code, _, err = run.weft("export tests/golden/dinov2_mlp " .. folder .. "/x")
    assert.equal(1, code)
    assert.matches("tests/golden/dinov2_mlp is no run: its config.json is not one of a run", err, 1, true)
    assert.equal(2, (run.weft "export one"))
  end)
end)
