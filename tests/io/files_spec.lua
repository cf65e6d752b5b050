local command = require "tests.support.command"
local files = require "weft.files"

describe("a temporary folder", function()
  it("is this user's alone, and gone with all in it when its function has ended", function()
    local seen
    local a, b, c = files.temporary(function(dir)
      seen = dir
      assert(files.write(dir .. "/file", "text"))
      assert(files.make_dirs(dir .. "/below/deep"))
      assert(files.write(dir .. "/below/deep/file", "text"))
      local _, mode = command.run("stat -c %a " .. dir)
      return mode, nil, 3
    end)
    assert.same({ "700\n", nil, 3 }, { a, b, c })
    assert.is_false(files.exists(seen))
  end)

  it("is gone after an error too, which comes through as it was", function()
    local seen
    local problem = { code = 7 }
    local ok, got = pcall(files.temporary, function(dir)
      seen = dir
      assert(files.write(dir .. "/file", "text"))
      error(problem)
    end)
    assert.is_false(ok)
    assert.equal(problem, got)
    assert.is_false(files.exists(seen))
  end)

  it("lies where TMPDIR says", function()
    local dir, remove = command.folder()
    local code = [[luajit -e 'require("weft.files").temporary(print)']]
    local _, out = command.run(("TMPDIR='%s/' %s"):format(dir, code))
    assert.equal(dir .. "/weft-", out:match "^(.*)%w%w%w%w%w%w\n$")
    _, out = command.run("TMPDIR= " .. code)
    assert.truthy(out:find "^/tmp/weft%-%w+\n$", out)
    assert.same({}, files.list(dir))
    remove()
  end)
end)
