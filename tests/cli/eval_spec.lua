require "weft"
local command = require "tests.support.command"
local tiny = require "tests.support.tiny"

describe("weft eval", function()
  local root, remove_pictures, run, remove, work, remove_work
  setup(function()
    root, remove_pictures = tiny.pictures(24)
    run, remove = tiny.run(root, { "epochs=2", "warmup_epochs=1" })
    run:train()
    work, remove_work = command.folder()
  end)
  teardown(function()
    remove_pictures()
    remove()
    remove_work()
  end)

  it("gives the scores that the run ended with, and says what they are made of", function()
    local code, out, err = command.weft(("eval %s --output %s/s.json"):format(run.dir, work))
    assert.equal(0, code, err)
    local made, result = tiny.json(work .. "/s.json"), tiny.json(run.dir .. "/result.json")
    assert.same(result.retrieval, made.scores.retrieval)
    assert.same(result.itm, made.scores.itm)
    assert.equal(result.captions.loss, made.scores.captions.loss)
    assert.equal(run.data.test:size(), made.protocol.pictures)
    assert.same(result.protocol, made.protocol)
    for _, e in ipairs(result.evaluations) do assert.equal(("step_%08d"):format(e.step), e.protocol.checkpoint) end
    assert.truthy(tiny.read(run.dir .. "/log.txt"):find("\nscores: held-out pictures of the run: ", 1, true))
    assert.equal(run.step, made.protocol.step)
    for _, words in ipairs { "held-out pictures of the run", "R@10", "chance", "always saying no", "perplexity", "short edge 28, crop 28" } do
      assert.truthy(out:find(words, 1, true), words)
    end
  end)

  it("puts the first candidates in order by matching when asked", function()
    local code, out, err = command.weft(("eval retrieval,rerank %s --top 3 --output %s/r.json"):format(run.dir, work))
    assert.equal(0, code, err)
    local made = tiny.json(work .. "/r.json")
    assert.equal(3, made.scores.reranked.top)
    assert.equal("the first 3 by ITC similarity, in the order of the matching head", made.protocol.reranked)
    assert.truthy(out:find("%, the first 3 by matching\n"), out)
    assert.equal(2, (command.weft(("eval rerank %s --top 0"):format(run.dir))))
  end)

  it("scores only what is named", function()
    local code, out = command.weft("eval itm " .. run.dir)
    assert.equal(0, code)
    assert.truthy(out:find("matching", 1, true))
    assert.is_nil(out:find("perplexity", 1, true))
    local _, err
    code, _, err = command.weft("eval itn " .. run.dir)
    assert.equal(2, code)
    assert.truthy(err:find("did you mean itm", 1, true), err)
  end)

  it("scores every picture of another place as the run prepares its own", function()
    local other, gone = tiny.pictures(12)
    local code, out, err = command.weft(("eval retrieval %s --data %s --output %s/o.json"):format(run.dir, other, work))
    assert.equal(0, code, err)
    local made = tiny.json(work .. "/o.json")
    assert.equal(12, made.protocol.pictures)
    assert.equal(12, made.scores.retrieval.pictures)
    assert.truthy(out:find("all captioned pictures of " .. other, 1, true))
    -- also when the run's own pictures are gone
    local own, copy = tiny.pictures(24), work .. "/copy"
    os.execute(("cp -r %s %s && sed -i 's|%s|/nowhere|' %s/config.json"):format(run.dir, copy, root, copy))
    assert.equal(0, (command.weft(("eval retrieval %s --data %s"):format(copy, own))))
    os.execute("rm -rf " .. own)
    gone()
  end)

  it("and weft export refuse a run whose adapter has not begun to train, unless forced", function()
    local early, gone = tiny.run(root, { "epochs=1", "warmup_epochs=1" })
    early:train()
    for words, what in pairs { ["eval retrieval " .. early.dir] = "scored", [("export %s %s/out"):format(early.dir, work)] = "exported" } do
      local code, _, err = command.weft(words)
      assert.equal(1, code)
      assert.truthy(err:find("the adapter default changes nothing: every B is zero, so the base would be " .. what, 1, true), err)
      assert.equal(0, (command.weft(words .. " --force")))
    end
    gone()
  end)

  it("changes nothing in the run", function()
    local _, before = command.run(("cd %s && find . -type f | sort | xargs cksum"):format(run.dir))
    command.weft("eval " .. run.dir)
    local _, after = command.run(("cd %s && find . -type f | sort | xargs cksum"):format(run.dir))
    assert.equal(before, after)
  end)

  it("says what is missing", function()
    assert.equal(2, (command.weft "eval"))
    local code, _, err = command.weft(("eval %s --data /nowhere"):format(run.dir))
    assert.equal(1, code)
    assert.truthy(err:find("/nowhere is not a folder", 1, true), err)
    local lost = work .. "/lost"
    os.execute(("cp -r %s %s && sed -i 's|recipes/stage1.lua|gone/mine.lua|' %s/config.json"):format(run.dir, lost, lost))
    code, _, err = command.weft("eval " .. lost)
    assert.equal(1, code)
    assert.truthy(err:find("its recipe gone/mine.lua is not here", 1, true), err)
    assert.equal(0, (command.weft(("eval itm %s --recipe recipes/stage1.lua"):format(lost))))
  end)
end)
