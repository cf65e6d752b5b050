-- dump.lua: one step of the tiny stage-1 model, written down for parity.py: settings, weights, batch,
-- queue, what was drawn, and the losses and gradients that weft computed.
-- Usage: luajit tests/bench/dump.lua FOLDER
package.path = "tests/bench/?.lua;" .. package.path
local weft = require "weft"
local stage1 = require "weft_stage1"
local ops, create = require("weft.ops").functions, require("weft.tensor").create
local io_, dir = require "weft.io.safetensors", arg[1]

local c = stage1.tiny
local model = stage1.model(c)
stage1.fill_queue(model, c)
local batch = stage1.batch(c, c.data.batch, 1)

local weights, given, expected = {}, {}, {}
for name, t in model:named_parameters() do weights[name] = t:detach():clone() end
local input = { pixels = batch.pixels, ids = batch.ids, mask = batch.mask,
  image_ids = weft.tensor(batch.image_ids, { dtype = "int64" }), caption_ids = weft.tensor(batch.caption_ids, { dtype = "int64" }) }
for _, name in ipairs { "image", "text", "ids", "captions", "tokens", "mask", "patches" } do
  input["queue." .. name] = model.queue:get(name):clone()
end

-- What is drawn on the way: matching's columns, the memory's noise.
local columns, noises = 0, 0
local multinomial, randn = ops.multinomial, create.randn
ops.multinomial = function(...)
  local drawn = multinomial(...)
  columns = columns + 1
  given["columns." .. columns] = drawn:reshape(-1):clone()
  return drawn
end
create.randn = function(...)
  local drawn = randn(...)
  noises = noises + 1
  given["noise." .. noises] = drawn:clone()
  return drawn
end
weft.random.set_step(1, 1)
local losses = model:losses(batch)
ops.multinomial, create.randn = multinomial, randn
assert(columns == 2 and noises == 2, "two draws of columns and two of noise are expected")

for name, value in pairs(losses) do expected["loss." .. name] = value:detach():clone():reshape { 1 } end
stage1.total(losses, c.weights):backward()
for name, t in model:named_parameters() do
  if t.requires_grad then
    expected["grad." .. name] = assert(t.grad, name .. " got no gradient")
  end
end

assert(io_.save(dir .. "/model.safetensors", weights))
assert(io_.save(dir .. "/batch.safetensors", input))
assert(io_.save(dir .. "/given.safetensors", given))
assert(io_.save(dir .. "/expected.safetensors", expected))
local plain = { encoder = c.encoder, lora = c.lora, compress = c.compress, fusion = c.fusion, memory = c.memory,
  itc = c.itc, weights = c.weights, language = { vocab = c.data.vocab, width = c.language.width, layers = c.language.layers,
    ff = c.language.ff, heads = c.language.heads, rope_theta = model.language.config.rope_theta, eps = model.language.config.eps } }
assert(require("weft.io.json").write(dir .. "/config.json", plain))
