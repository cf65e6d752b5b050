local run = require "tests.support.command"

describe("the examples' runner", function()
  local function page(text)
    local path = os.tmpname()
    local f = assert(io.open(path, "w"))
    f:write(text)
    f:close()
    local _, out = run.run("luajit tests/docs/blocks.lua " .. path)
    os.remove(path)
    return out
  end

  it("lets a block know what an earlier one made", function()
    local out = page "```lua\nlocal x = 20\n```\n```lua\nassert(x + 1 == 21)\n```\n"
    assert.truthy(out:find("2 passed, 0 failed", 1, true), out)
  end)

  it("counts a block that fails, in each language", function()
    local out = page "```lua\nerror 'boo'\n```\n```sh\nfalse\ntrue\n```\n```c\nint main(void) { return 3; }\n```\n"
    assert.truthy(out:find("0 passed, 3 failed", 1, true), out)
  end)

  it("skips for a reason only", function()
    local out = page "```sh skip: wants a network\nfalse\n```\n```sh skip\ntrue\n```\n"
    assert.truthy(out:find("skipped: wants a network", 1, true), out)
    assert.truthy(out:find("0 passed, 1 failed", 1, true), out)
  end)

  it("leaves other blocks alone, and tells one that is never closed", function()
    assert.truthy(page("```text\nfoo\n```\n"):find("0 passed, 0 failed", 1, true))
    assert.truthy(page("```lua\nprint(1)\n"):find("never closed", 1, true))
  end)
end)
