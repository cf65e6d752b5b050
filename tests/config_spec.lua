-- config_spec.lua: settings with typed overrides, unknown keys refused, and reads noted.
local weft = require "weft"
local config = require "weft.config"

local function with(overrides, defaults, recorded)
  config.set_next(overrides, recorded)
  return weft.config(defaults)
end
local function refused(pattern, fn, ...)
  local ok, message = pcall(fn, ...)
  assert.is_false(ok)
  assert.matches(pattern, message)
end
local function defaults()
  return { epochs = 20, name = "run", augment = true, sizes = { 1, 2 }, words = { "a" }, none = {},
    optim = { lr = 1e-3, betas = { 0.9, 0.98 }, deep = { er = "x" } }, data = { path = "pictures" } }
end

describe("weft.config", function()
  it("gives the defaults, sections as fields", function()
    local c = weft.config(defaults())
    assert.equal(20, c.epochs)
    assert.equal(1e-3, c.optim.lr)
    assert.equal("x", c.optim.deep.er)
    assert.same({ 1, 2 }, c.sizes)
    assert.is_true(c.augment)
  end)

  it("has keys named as its own parts are", function()
    assert.equal("pictures", weft.config(defaults()).data.path)
    assert.equal("odd", weft.config({ path = "odd" }).path)
  end)

  it("leaves the recipe's table alone", function()
    local mine = defaults()
    local c = with({ "optim.lr=5", "sizes=[7]" }, mine)
    assert.equal(5, c.optim.lr)
    assert.same(defaults(), mine)
  end)

  it("takes overrides by path, each of its default's type", function()
    local c = with({ "epochs=3", "name=other=x", "augment=false", "sizes=[3, 4,5]", "words=[x,y z]", "none=[1,b]",
      "optim.lr=2e-4", "optim.betas=[0.8,0.9]", "optim.deep.er=", "data.path=/tmp/a.b" }, defaults())
    assert.equal(3, c.epochs)
    assert.equal("other=x", c.name)
    assert.is_false(c.augment)
    assert.same({ 3, 4, 5 }, c.sizes)
    assert.same({ "x", "y z" }, c.words)
    assert.same({ 1, "b" }, c.none)
    assert.equal(2e-4, c.optim.lr)
    assert.same({ 0.8, 0.9 }, c.optim.betas)
    assert.equal("", c.optim.deep.er)
    assert.equal("/tmp/a.b", c.data.path)
    for text, value in pairs { ["1"] = true, yes = true, ["true"] = true, ["0"] = false, no = false } do
      assert.equal(value, with({ "augment=" .. text }, defaults()).augment)
    end
    assert.same({}, with({ "sizes=[]" }, defaults()).sizes)
  end)

  it("refuses values of another type, with an example", function()
    refused("epochs: a number such as 20 is expected, got \"many\"", with, { "epochs=many" }, defaults())
    refused("epochs: a number such as 20 is expected, got \"\"", with, { "epochs=" }, defaults())
    refused("augment: true or false is expected, got \"maybe\"", with, { "augment=maybe" }, defaults())
    refused("sizes: a list such as %[a,b%] is expected, got \"3\"", with, { "sizes=3" }, defaults())
    refused("sizes: a number such as 1 is expected, got \"x\"", with, { "sizes=[1,x]" }, defaults())
  end)

  it("refuses keys that the recipe does not have, with the nearest that it has", function()
    refused("unknown key epoch; did you mean epochs", with, { "epoch=3" }, defaults())
    refused("unknown key optim.rl; did you mean optim.lr", with, { "optim.rl=3" }, defaults())
    refused("unknown key optim", with, { "optim=3" }, defaults())
    refused("unknown key epochs.x", with, { "epochs.x=3" }, defaults())
    refused("key.sub=value is expected, got \"epochs\"", with, { "epochs" }, defaults())
    refused("key.sub=value is expected", with, { "=3" }, defaults())
  end)

  it("forgets overrides that it refused or used", function()
    pcall(with, { "epoch=3" }, defaults())
    assert.equal(20, weft.config(defaults()).epochs)
    with({ "epochs=3" }, defaults())
    assert.equal(20, weft.config(defaults()).epochs)
  end)

  it("takes recorded values over defaults, and the command line over both", function()
    local recorded = { epochs = 7, name = "then", optim = { lr = 9, deep = { er = "y" } }, gone = 1 }
    local c = with({ "name=now" }, defaults(), recorded)
    assert.equal(7, c.epochs)
    assert.equal("now", c.name)
    assert.equal(9, c.optim.lr)
    assert.same({ 0.9, 0.98 }, c.optim.betas)
    assert.equal("y", c.optim.deep.er)
    refused("config has no key gone", function() return c.gone end)
  end)

  it("refuses a read of what it does not have, and any write", function()
    local c = weft.config(defaults())
    refused("config has no key epoch; did you mean epochs", function() return c.epoch end)
    refused("config has no key optim.lrs; did you mean lr", function() return c.optim.lrs end)
    refused("config: optim.lr can't be set here; pass optim.lr=value", function() c.optim.lr = 3 end)
    assert.equal(5, config.get(c, "missing", 5))
    assert.equal(20, config.get(c, "epochs", 5))
  end)

  it("knows what nobody read", function()
    local c = weft.config { a = 1, b = 2, s = { c = 3, d = 4 }, t = { e = 5, f = 6 } }
    local _ = c.a + c.s.d
    assert.same({ "b", "s.c", "t.e", "t.f" }, config.unread(c))
    _ = config.values(c)
    assert.same({ "b", "s.c", "t.e", "t.f" }, config.unread(c))
    assert.same({ e = 5, f = 6 }, config.plain(c.t))
    assert.same({ "b", "s.c" }, config.unread(c))
  end)

  it("gives all values as plain tables, and flat", function()
    local c = with({ "optim.lr=3" }, defaults())
    local expected = defaults()
    expected.optim.lr = 3
    assert.same(expected, config.values(c))
    local flat, paths = config.flat(c)
    assert.equal(3, flat["optim.lr"])
    assert.same({ "augment", "data.path", "epochs", "name", "none", "optim.betas", "optim.deep.er", "optim.lr",
      "sizes", "words" }, paths)
  end)

  it("hands a section to a function that takes options", function()
    local c = weft.config { opt = { eps = 1e-3, atol = 0.5, rtol = 0.5 } }
    local x = weft.tensor({ 1, 2 }, { dtype = "float64", requires_grad = true })
    assert.is_true(weft.gradcheck(function(a) return a * 2 end, { x }, c.opt))
    assert.same({}, config.unread(c))
    local wrong = weft.config { opt = { epsilon = 1e-3 } }
    refused("unknown option epsilon; did you mean eps", weft.gradcheck, function(a) return a end, { x }, wrong.opt)
  end)
end)
