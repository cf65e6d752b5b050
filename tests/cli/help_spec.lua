local run = require "tests.support.command"
local weft = run.weft

describe("help by name", function()
  it("shows a function with the comment above its definition", function()
    local code, out = weft "help peft.lora"
    assert.equal(0, code)
    assert.truthy(out:find("weft.peft.lora(model, options)", 1, true), out)
    assert.truthy(out:find("freezes everything else", 1, true), out)
  end)

  it("shows a class, one that a function made, and an optimizer", function()
    assert.truthy(select(2, weft "help nn.Linear"):find("weft.nn.Linear(n_in, n_out, options)", 1, true))
    assert.truthy(select(2, weft "help zeros"):find("weft.zeros{ 2, 3", 1, true))
    assert.truthy(select(2, weft "help optim.AdamW"):find("list of groups", 1, true))
  end)

  it("answers at the prompt, by ? and by weft.help", function()
    local _, out = weft("repl", "?peft.merge\nweft.help 'weft.scope'\n")
    assert.truthy(out:find("Folds the active adapters", 1, true), out)
    assert.truthy(out:find("weft.scope(fn, ...)", 1, true), out)
  end)

  it("still names what is near an operator", function()
    local code, _, err = weft "help layer_nrom"
    assert.equal(1, code)
    assert.truthy(err:find("did you mean layer_norm", 1, true), err)
  end)
end)

describe("weft run", function()
  local folder, remove
  before_each(function() folder, remove = run.folder() end)
  after_each(function() remove() end)

  local function script(text)
    local f = assert(io.open(folder .. "/s.lua", "w"))
    f:write(text)
    f:close()
    return folder .. "/s.lua"
  end

  it("runs a script with weft and its arguments, and returns its exit code", function()
    local path = script "local weft = require 'weft'\nprint(weft.ones{ 2 }:sum():item(), arg[1], ...)\nreturn 3\n"
    local code, out = weft("run " .. path .. " --all x")
    assert.equal(3, code)
    assert.equal("2\t--all\t--all\tx\n", out)
  end)

  it("names the script's own line when it fails", function()
    local code, _, err = weft("run " .. script "local weft = require 'weft'\n\nweft.zeros{ 2 }:matmul(weft.zeros{ 3 })\n")
    assert.equal(1, code)
    assert.truthy(err:find("s.lua:3: matmul: a [2] x b [3]", 1, true), err)
  end)

  it("wants a script", function()
    assert.equal(2, (weft "run"))
    local code, _, err = weft("run " .. folder .. "/none.lua")
    assert.equal(1, code)
    assert.truthy(err:find("none.lua", 1, true), err)
  end)
end)

describe("mistakes on the command line", function()
  it("say what is wrong, without a line of weft's own", function()
    local code, _, err = weft "caption /nowhere/run a.png"
    assert.equal(1, code)
    assert.equal("weft caption: /nowhere/run is no run: /nowhere/run/config.json: No such file or directory\n", err)
    local _, _, other = weft "train recipes/none.lua"
    assert.falsy(other:find("lua/weft", 1, true), other)
  end)
end)
