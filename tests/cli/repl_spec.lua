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

  it("explains methods and functions of the session's own", function()
    local _, out = repl "x = weft.ones{2}\n?x:softmax\nhelper = require('weft.nearest')\n?helper.nearest\n"
    assert.truthy(out:find("weft.softmax(x, dim = -1)", 1, true))
    assert.truthy(out:find("helper.nearest(name, known, count)\n    The known names nearest to name", 1, true), out)
  end)

  it("runs out of memory a hundred times; a smaller line works then, and nothing is lost", function()
    local code, out, err = repl("weft.memory_limit(2^25);\nbefore = weft.memory().live;\n"
      .. ("weft.cat({ weft.ones{1500, 1500}, weft.ones{1500, 1500} }, 1)\n"):rep(100)
      .. "weft.ones{100, 100}:sum():item()\n_ = nil collectgarbage() collectgarbage()\nweft.memory().live - before\n")
    assert.equal(1, code)
    assert.equal("10000\n0\n", out)
    assert.equal(100, select(2, err:gsub("stdin:1: cat: [^\n]*out of memory on cpu: requested 18000000 bytes", "")))
  end)

  it("prints tensors with their statistics", function()
    local _, out = repl "weft.ones{2, 2}\n"
    assert.truthy(out:find("float32 [2,2] cpu", 1, true))
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
    assert.same({ "model:forward" }, names("model:fo", env))
    assert.same({ "model.form", "model.forward" }, names("model.fo", env))
    assert.same({}, names("nothing.x", env))
  end)
end)

describe("what may stand in a line", function()
  local complete = require("weft.cli.complete").complete
  local weft = require "weft"

  it("is what an unfinished string names: files, modules, keys", function()
    local env = { weft = weft, model = weft.nn.Sequential(weft.nn.Linear(2, 3)), config = weft.config { lora = { rank = 4 } } }
    assert.same({ "command.lua", "counts.lua" }, complete('x = weft.load("tests/support/', "co", env))
    assert.same({ "support/" }, complete('x = weft.load("tests/', "sup", env))
    assert.same({ "0.weight" }, complete("weft.capture(model, '", "0.w", env))
    assert.same({ "lora.rank" }, complete('reload("', "lora.r", env))
  end)

  it("is a function behind a colon, and what loads only when it is used", function()
    local env = { weft = weft, x = weft.ones { 2 }, model = weft.nn.Linear(2, 3) }
    assert.same({ "x:matmul" }, complete("y = ", "x:matm", env))
    assert.same({ "x.dtype" }, complete("y = ", "x.dty", env))
    assert.same({}, complete("y = ", "x:dty", env))
    assert.same({ "model:named_parameters" }, complete("", "model:named_p", env))
    assert.same({ "weft.nn.MultiHeadAttention" }, complete("", "weft.nn.Mul", env))
    assert.same({ "weft.capture" }, complete("", "weft.capt", env))
  end)

  it("is a name to explain behind a question mark, and arguments inside a call", function()
    local env = { weft = weft }
    assert.same({ "softmax" }, complete("?", "softm", env))
    assert.equal("weft.softmax(x, dim = -1)", complete("f(weft.softmax(weft.ones { 2 }, ", "", env))
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
