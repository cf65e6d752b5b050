local session = require("tests.support.terminal").session

describe("the prompt on a terminal", function()
  it("stops an endless loop at Ctrl-C and goes on", function()
    local out, history = session {
      { "Ctrl-D", [[print("run" .. "ning") while true do end\r]] },
      { "running", [[\003]] },
      { "interrupted", [[print(6 * 7)\r]] },
      { "42", [[\004]] },
    }
    assert.truthy(out:find "interrupted")
    assert.truthy(out:find("\n42\r", 1, true))
    assert.equal('print("run" .. "ning") while true do end\nprint(6 * 7)\n', history)
  end)

  it("stops a second endless loop too, and a line half typed", function()
    local out = session {
      { "Ctrl-D", [[print("fi" .. "rst") while true do end\r]] },
      { "first", [[\003]] },
      { "interrupted", [[print("sec" .. "ond") repeat until false\r]] },
      { "second", [[\003]] },
      { "interrupted", [[print("half" .. "way")\r]], 2 },
      { "halfway", [[error(]] },
      { "error(", [[\003]] },
      { "error(^C", [[print(6 * 7)\r]] },
      { "42", [[\004]] },
    }
    local _, count = out:gsub("interrupted", "")
    assert.equal(2, count)
    assert.truthy(out:find("\n42\r", 1, true))
  end)

  it("shows the arguments at Tab behind a parenthesis, and keeps the line", function()
    local out = session {
      { "Ctrl-D", [[weft.softmax(\t]] },
      { "dim = -1", [[weft.ones{ 2 }):sum():item() + 41\r]] },
      { "42", [[\004]] },
    }
    assert.truthy(out:find("weft.softmax(x, dim = -1)", 1, true), out)
    assert.truthy(out:find("\n42\r", 1, true), out)
  end)

  it("reads plainly where editing is not wanted", function()
    local out = session { options = " repl --plain",
      { "Ctrl-D", [[print(6 * 7)\n]] },
      { "42", [[\004]] },
    }
    assert.truthy(out:find("42\r", 1, true))
  end)

  it("stops a product in its midst, twice, and the tensors are as they were", function()
    local out = session {
      { "Ctrl-D", [[x = weft.ones{9000, 9000}; print("re" .. "ady")\r]] },
      { "ready", [[print("fi" .. "rst") y = x:matmul(x)\r]] },
      { "first", [[\003]] },
      { "interrupted", [[print("sec" .. "ond") y = x:matmul(x)\r]] },
      { "second", [[\003]] },
      { "interrupted", [[print(y, (x:sum() / 9):item())\r]], 2 },
      { "9000000", [[\004]] },
    }
    assert.truthy(out:find("nil%s+9000000\r"), out)
  end)

  it("stops a loop that catches every error", function()
    local out = session {
      { "Ctrl-D", [[print("lo" .. "op") while true do pcall(function() return weft.ones{2} + 1 end) end\r]] },
      { "loop", [[\003]] },
      { "interrupted", [[print(6 * 7)\r]] },
      { "42", [[\004]] },
    }
    assert.truthy(out:find("\n42\r", 1, true), out)
  end)

  it("takes a pasted function whole, its tabs and its letters", function()
    local out, history = session {
      { "Ctrl-D", [[\033[200~function f(n)\n\tlocal t = "höhe"\n\n\treturn t .. n\nend\033[201~]] },
      { ">> end", [[\r]] },
      { ">> end", [[f(6 * 7)\r]] },
      { "höhe42", [[\004]] },
    }
    assert.truthy(out:find("\nhöhe42\r", 1, true), out)
    assert.is_nil(out:find("coroutine", 1, true)) -- a tab completes nothing
    assert.truthy(history:find('\treturn t .. n\nend\nf(6 * 7)\n', 1, true), history)
  end)

  it("leaves the rest of a pasted line to be edited", function()
    local out = session {
      { "Ctrl-D", [[\033[200~print(6 *\033[201~]] },
      { "print(6 *", [[ 7)\r]] },
      { "42", [[\004]] },
    }
    assert.truthy(out:find("\n42\r", 1, true), out)
  end)

  it("completes methods, files in strings, and what stands behind an index", function()
    local out = session {
      { "Ctrl-D", [[x = { weft.ones{2} };\r]] },
      { "{2} };", [[x[1]:matm\t]] },
      { "ul", [[(x[1]):item() + 40\r]] },
      { "42", [[#io.open("tests/support/comm\t]] },
      { "and.lua", [["):read(5) + 995\r]] },
      { "1000", [[\004]] },
    }
    assert.truthy(out:find("\n42\r", 1, true), out)
    assert.truthy(out:find("\n1000\r", 1, true), out)
  end)

  it("colours errors, unless NO_COLOR is set", function()
    local steps = { { "Ctrl-D", [[error("bo" .. "o")\r]] }, { "stdin:1: boo", [[\004]] } }
    assert.truthy(session(steps, "TERM=xterm-256color NO_COLOR="):find("\27[31mstdin:1: boo", 1, true))
    assert.is_nil(session(steps, "TERM=xterm-256color NO_COLOR=1"):find("\27[31m", 1, true))
  end)
end)
