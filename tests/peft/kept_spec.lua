local weft = require "weft"
local counts = require "tests.support.counts"
local nn, peft = weft.nn, weft.peft

local ROWS, WIDTH = 64, 512
local BYTES = ROWS * WIDTH * 4

local Attention = nn.Module "Attention"
function Attention:init()
  for _, name in ipairs { "query", "key", "value" } do self[name] = nn.Linear(WIDTH, 8) end
end

describe("what adapters on one input keep for backward", function()
  -- Bytes that stay while the tape does, after `names` have seen one input; of(x) is what each is given.
  local function kept(dropout, names, of)
    local model = peft.lora(Attention(), { targets = { "query", "value" }, rank = 4, alpha = 8, dropout = dropout })
    model:assign_paths()
    for name, t in model:named_parameters() do t:requires_grad_(name:find "lora_" ~= nil) end
    model:train()
    local source = weft.randn { ROWS, WIDTH }
    local before, copies = counts.alive().live, counts.copies()
    local out = (function()
      local x, all = source * 2, {}
      for i, name in ipairs(names) do all[i] = model[name](of and of(x) or x) end
      return all
    end)()
    local bytes = counts.alive().live - before
    assert.equal(copies, counts.copies())
    assert.equal(#names, #out)
    return bytes
  end

  for _, dropout in ipairs { 0, 0.1 } do
    it(("is that input once for query and value (dropout %g)"):format(dropout), function()
      local one = kept(dropout, { "query" })
      assert.is_true(one >= BYTES and one < 1.25 * BYTES, one)
      local both = kept(dropout, { "query", "value" })
      assert.is_true(both - one < 0.25 * BYTES, both - one)
      -- the count does see a second one
      assert.is_true(kept(dropout, { "query", "value" }, function(x) return x:clone() end) - one >= BYTES)
    end)
  end

  it("is nothing for a frozen layer without an adapter", function()
    assert.is_true(kept(0, { "key" }) < 0.25 * BYTES)
  end)
end)
