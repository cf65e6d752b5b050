-- compressor_spec.lua: the compressor is plain layers in a row; its count is known.
local nn = require("weft").nn
local Module = require("weft.nn.module").base

describe("compressor", function()
  it("counts 344,832", function()
    local compress = Module.on_meta(function()
      return nn.Sequential(nn.Linear(768, 384), nn.ReLU(), nn.Dropout(0.1), nn.Linear(384, 128), nn.LayerNorm(128))
    end)
    assert.equal(344832, compress:count())
  end)
end)
