local run = require "tests.support.command"
local weft = run.weft

describe("the weft command", function()
  it("lists its verbs and exit codes", function()
    local code, out = weft "help"
    assert.equal(0, code)
    for _, verb in ipairs { "repl", "doctor", "inspect", "help" } do
      assert.truthy(out:find("weft " .. verb, 1, true), verb)
    end
    assert.truthy(out:find("75 stopped by a signal", 1, true))
  end)

  it("answers help without opening the C library", function()
    local code, out = run.run "LD_DEBUG=files bin/weft help 2>&1 | grep -c libweft.so"
    assert.equal(1, code) -- grep found none
    assert.equal("0\n", out)
  end)

  it("explains an operator with its defaults", function()
    local code, out = weft "help layer_norm"
    assert.equal(0, code)
    assert.truthy(out:find("weft.layer_norm(x", 1, true))
    assert.truthy(out:find("eps = 1e-05", 1, true) or out:find("eps = 1e-5", 1, true))
  end)

  it("names what is near a mistaken operator", function()
    local code, _, err = weft "help sofmax"
    assert.equal(1, code)
    assert.truthy(err:find("did you mean softmax", 1, true))
  end)

  it("refuses an unknown verb with exit code 2 and the nearest", function()
    local code, out, err = weft "docter"
    assert.equal(2, code)
    assert.equal("", out)
    assert.truthy(err:find("no verb docter; did you mean doctor?", 1, true))
  end)

  it("refuses an unknown option with exit code 2 and the nearest", function()
    local code, _, err = weft "inspect --stast x"
    assert.equal(2, code)
    assert.truthy(err:find("did you mean --stats?", 1, true))
  end)

  it("has a page with two examples for every verb", function()
    for _, verb in ipairs(require("weft.cli").verbs()) do
      local code, out = weft(verb .. " --help")
      assert.equal(0, code, verb)
      local examples = out:match "Examples:\n(.*)"
      local _, count = (examples or ""):gsub("\n", "")
      assert.is_true(count >= 2, verb .. " has " .. count .. " examples")
    end
  end)

  it("runs a script or a line of code as Lua does: arguments, exit codes, no banner", function()
    local path = os.tmpname()
    local f = assert(io.open(path .. ".lua", "w"))
    f:write 'print(require("weft").ones { 2 }:sum():item(), #arg, arg[0] ~= nil, ...)\nif arg[2] == "fail" then error "boo" end\nreturn tonumber(arg[1])\n'
    f:close()
    local code, out = weft(path .. ".lua 3 --help")
    assert.equal(3, code)
    assert.equal("2\t2\ttrue\t3\t--help\n", out)
    local bad, _, err = weft(path .. ".lua 0 fail")
    assert.equal(1, bad)
    assert.equal(("weft run: %s.lua:2: boo\n"):format(path), err)
    code, out = weft "-e 'print(weft.arange(5):sum():item(), arg[1])' x"
    assert.equal(0, code)
    assert.equal("10\tx\n", out)
    assert.equal(7, (weft "-e 'return 7'"))
    assert.equal(1, (weft "-e 'x ='"))
    assert.equal(2, (weft "-e"))
    os.remove(path)
    os.remove(path .. ".lua")
  end)

  it("starts through a symbolic link", function()
    local folder, remove = run.folder()
    local code, out = run.run(("ln -s $PWD/bin/weft %s/w && cd / && %s/w --version"):format(folder, folder))
    remove()
    assert.equal(0, code)
    assert.equal("weft " .. require("weft.core").version .. "\n", out)
  end)

  it("says what to do where the library is not built", function()
    local code, _, err = run.run "WEFT_BUILD=no-such-folder bin/weft doctor"
    assert.equal(1, code)
    assert.truthy(err:find("bin/quickstart", 1, true), err)
  end)
end)

describe("command-line words", function()
  local words = require "weft.cli.words"
  local options = { { "stats", "" }, { "out", "", value = "FILE" } }

  it("are told from options wherever they stand", function()
    local args = words.parse({ "a", "--stats", "b", "--out=x", "--", "--c" }, options)
    assert.same({ "a", "b", "--c", stats = true, out = "x" }, args)
  end)

  it("give an option the word after it", function()
    assert.equal("y", words.parse({ "--out", "y" }, options).out)
  end)

  it("refuse an option without its value, and a switch with one", function()
    local _, missing = words.parse({ "--out" }, options)
    assert.truthy(missing:find("--out wants FILE after it", 1, true))
    local _, extra = words.parse({ "--stats=3" }, options)
    assert.truthy(extra:find("is a switch", 1, true))
  end)
end)
