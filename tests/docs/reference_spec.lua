local run = require "tests.support.command"

describe("docs/reference.md", function()
  it("is what the sources say (luajit tools/reference.lua writes it)", function()
    local code, _, err = run.run "luajit tools/reference.lua --check"
    assert.equal(0, code, err)
  end)

  it("has every operator of the table that Lua can call", function()
    local f = assert(io.open "docs/reference.md")
    local text = f:read "*a"
    f:close()
    for name, signature in pairs(require("weft.ops").signatures) do
      assert.truthy(text:find("- `" .. signature .. "`", 1, true), name)
    end
  end)

  it("speaks of no function that weft does not have", function()
    local weft = require "weft"
    for line in io.lines "docs/reference.md" do
      local path = line:match "^#### `([%w_%.]+)"
      local first = path and path:match "^[^.]+"
      if path and (first == "weft" or rawget({ nn = 1, optim = 1, peft = 1, models = 1, losses = 1, data = 1, train = 1 }, first))
        and not line:find("`[%w_]+:") then
        local at = weft
        for key in path:gsub("^weft%.", ""):gmatch "[^.]+" do at = at[key] end
        assert.is_not_nil(at, path)
      end
    end
  end)
end)
