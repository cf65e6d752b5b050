local run = require "tests.support.command"

local function lines(text)
  local list = {}
  for line in text:gmatch "[^\n]+" do list[#list + 1] = line end
  return list
end

local function repl(input) return run.weft("repl", input) end

describe("the prompt from a pipe", function()
  it("prints values and nothing else", function()
    local code, out, err = repl "1 + 1\n'text'\nnil\n1, 2\n"
    assert.equal(0, code)
    assert.equal("2\ntext\nnil\n1\t2\n", out)
    assert.equal("", err)
  end)

  it("is silenced by a semicolon and remembers the last value in _", function()
    local _, out = repl "6 * 7;\n_ + 1\n"
    assert.equal("43\n", out)
  end)

  it("goes on in the next line until a statement is whole", function()
    local _, out = repl "for i = 1, 2 do\nprint(i)\nend\nmath.max(1,\n5)\n{ 1,\n  2 }\n[[a\nb]]\n"
    assert.equal("1\n2\n5\n{ 1, 2 }\na\nb\n", out)
  end)

  it("keeps what a line declared local", function()
    local _, out = repl "local x = 3\nlocal function twice(v) return 2 * v end\ntwice(x)\n"
    assert.equal("6\n", out)
  end)

  it("survives errors, says which line, and ends with 1", function()
    local code, out, err = repl "error 'boo'\nx y\nweft.no_such\n8\n"
    assert.equal(1, code)
    assert.equal("8\n", out)
    local list = lines(err)
    assert.equal(3, #list)
    assert.truthy(list[1]:find("boo", 1, true))
    assert.truthy(list[2]:find("near 'y'", 1, true))
    assert.truthy(list[3]:find("stdin:1: weft has no no_such", 1, true))
  end)

  it("puts an operator's error on the user's line, without a trace", function()
    local _, _, err = repl "x = weft.ones{2, 3}\nweft.matmul(x, x)\n"
    assert.truthy(err:find("^stdin:1: matmul: a %[2,3%] x b %[2,3%]"), err)
    assert.equal(1, #lines(err))
  end)

  it("complains about a statement that never ends", function()
    local code, _, err = repl "for i = 1, 2 do\n"
    assert.equal(1, code)
    assert.truthy(err:find("middle of a statement", 1, true))
  end)

  it("explains operators by ?name", function()
    local _, out = repl "?softmax\n?sofmax\n"
    assert.truthy(out:find("weft.softmax(x, dim = -1)", 1, true))
    assert.truthy(out:find("did you mean softmax", 1, true))
  end)

  it("prints tensors with their statistics", function()
    local _, out = repl "weft.ones{2, 2}\n"
    assert.truthy(out:find("float32 [2,2] cpu", 1, true))
  end)
end)

describe("the prompt on a terminal", function()
  -- Types at a pseudo-terminal: a step waits for a text to appear (so many times), then types.
  local function session(steps, environment)
    local folder, remove = run.folder()
    local script = { "out=" .. folder .. "/out; : >$out",
      "waits() { i=0; until [ $(grep -aoF -- \"$1\" $out | wc -l) -ge $2 ]; do sleep 0.05; "
        .. "i=$((i+1)); [ $i -gt 1200 ] && break; done; }",
      "export XDG_STATE_HOME=" .. folder .. "/state " .. (environment or ""),
      "unset LD_PRELOAD; {" }
    for _, step in ipairs(steps) do
      script[#script + 1] = ("waits '%s' %d; printf '%s'"):format(step[1], step[3] or 1, step[2])
    end
    script[#script + 1] = ("} | LD_PRELOAD= script -qec 'env LD_PRELOAD=%s bin/weft%s' /dev/null >$out")
      :format(os.getenv "LD_PRELOAD" or "", steps.options or "")
    script[#script + 1] = "cat $out"
    local _, out = run.run(table.concat(script, "\n"))
    local f = io.open(folder .. "/state/weft/history")
    local history = f and f:read "*a"
    if f then f:close() end
    remove()
    return out, history
  end

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
      { "\n42", [[\004]] },
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
end)

describe("completion", function()
  local names = require("weft.cli.complete").names

  it("finds names in tables and keeps what stands before them", function()
    local env = { weft = { softmax = 1, softplus = 1, log = 1, _hidden = 1 } }
    assert.same({ "weft.softmax", "weft.softplus" }, names("weft.soft", env))
    assert.same({ "weft.log", "weft.softmax", "weft.softplus" }, names("weft.", env))
  end)

  it("finds inherited methods after a colon, and nothing behind nil", function()
    local class = { __index = { forward = print } }
    local env = { model = setmetatable({ form = 1 }, class) }
    assert.same({ "model:form", "model:forward" }, names("model:fo", env))
    assert.same({}, names("nothing.x", env))
  end)
end)

describe("completion of a run's things", function()
  local complete = require "weft.cli.complete"
  local weft = require "weft"

  it("knows the modules and tensors of a model, and the keys of a config", function()
    local env = { model = weft.nn.Sequential(weft.nn.Linear(2, 3)), config = weft.config { lora = { rank = 4, alpha = 8 }, lr = 1 } }
    env.model.head = weft.nn.Linear(3, 1)
    assert.same({ "model.head" }, complete.names("model.hea", env))
    assert.same({ "model.head.weight" }, complete.names("model.head.wei", env))
    assert.same({ "config.lora", "config.lr" }, complete.names("config.", env))
    assert.same({ "config.lora.alpha", "config.lora.rank" }, complete.names("config.lora.", env))
  end)

  it("shows the arguments of operators, methods, functions and classes", function()
    local env = { weft = weft, x = weft.ones { 2 }, m = weft.nn.Linear(2, 3) }
    assert.equal("weft.softmax(x, dim = -1)", complete.arguments("y = weft.softmax", env))
    assert.equal("x:softmax(dim = -1)", complete.arguments("x:softmax", env))
    assert.equal("x:abs()", complete.arguments("x:abs", env))
    assert.equal("weft.capture(model, pattern, ...)", complete.arguments("weft.capture", env))
    assert.equal("weft.nn.Linear(n_in, n_out, options)", complete.arguments("weft.nn.Linear", env))
    assert.equal("m:load_state_dict(state, options)", complete.arguments("m:load_state_dict", env))
    assert.is_nil(complete.arguments("nothing.at.all", env))
    assert.is_nil(complete.arguments("(1 + 2) ", env))
  end)
end)

describe("showing values", function()
  local show = require("weft.cli.show").value

  it("bounds long tables and tells cycles", function()
    local long = {}
    for i = 1, 100 do long[i] = i end
    assert.truthy(show(long):find("80 more", 1, true))
    local loop = { name = "loop" }
    loop.self = loop
    assert.equal('{ name = "loop", self = { (itself) } }', show(loop))
  end)

  it("shows all that there is when asked", function()
    local long = {}
    for i = 1, 100 do long[i] = { { { { i } } } } end
    local text = require("weft.cli.show").all(long)
    assert.is_nil(text:find("more", 1, true))
    assert.truthy(text:find("100", 1, true))
    assert.truthy(show(long):find("all(_)", 1, true))  -- bounded again
  end)

  it("uses an object's own text", function()
    assert.equal("I am", show(setmetatable({}, { __tostring = function() return "I am" end })))
  end)
end)
