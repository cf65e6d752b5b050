-- groups_spec.lua: the parameter groups of LoRA+, against PEFT's, and in an optimizer.
local weft = require "weft"
local json = require "weft.io.json"
local nn, peft = weft.nn, weft.peft

describe("the groups of LoRA+", function()
  it("are PEFT's for the same names", function()
    local golden, shapes, list = assert(json.read "tests/golden/loraplus.json"), {}, {}
    for _, group in ipairs(golden) do
      for _, name in ipairs(group.names) do
        shapes[name] = name:find "bias" and { 8 } or { 2, 8 }
        list[#list + 1] = { name, weft.zeros(shapes[name]):requires_grad_() }
      end
    end
    local got = {}
    for _, group in ipairs(peft.groups(list, { lr = 1e-3, ratio = 16 })) do
      for _, p in ipairs(group.params) do got[p[1]] = { group.lr, group.weight_decay } end
    end
    local n = 0
    for _, group in ipairs(golden) do
      for _, name in ipairs(group.names) do
        assert.near(group.lr, got[name][1], 1e-12)
        assert.equal(group.weight_decay, got[name][2])
        n = n + 1
      end
    end
    assert.equal(5, n)
  end)

  it("hold each trainable parameter of a model once, and move an optimizer", function()
    local Net = nn.Module "GroupsNet"
    function Net:init()
      self.table, self.norm, self.query = nn.Embedding(5, 4), nn.LayerNorm(4), nn.Linear(4, 4)
    end
    function Net:forward(ids) return self.query(self.norm(self.table(ids))) end
    local m = peft.lora(Net():initialize(1), { rank = 2, targets = { "query" } })
    m.table:unfreeze()
    m.norm:unfreeze()
    local groups, rates = peft.groups(m, { lr = 0.1, ratio = 4, embedding_lr = 0.01, weight_decay = 0.5 }), {}
    for _, g in ipairs(groups) do
      for _, p in ipairs(g.params) do
        assert.is_nil(rates[p[1]])
        rates[p[1]] = ("%g %g"):format(g.lr, g.weight_decay)
      end
    end
    assert.same({ ["table.weight"] = "0.01 0.5", ["norm.weight"] = "0.4 0", ["norm.bias"] = "0.4 0",
      ["query.lora_A.default.weight"] = "0.1 0.5", ["query.lora_B.default.weight"] = "0.4 0.5" }, rates)
    local optimizer = weft.optim.AdamW(groups)
    weft.backward(m(weft.tensor { 1, 2 }:to "int64"):sum())
    local before = m.query.lora_B.default.weight:detach():clone()
    optimizer:step()
    assert.is_true((m.query.lora_B.default.weight - before):abs():max():item() > 0.3)
    assert.is_false(pcall(peft.groups, m:freeze(), { lr = 1 }))
    assert.is_false(pcall(peft.groups, m, { lr = -1 }))
  end)
end)
