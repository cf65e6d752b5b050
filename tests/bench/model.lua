-- model.lua: writes a DINOv2 with random weights as a Hugging Face directory, for the rows that open one.
-- Usage: luajit tests/bench/model.lua DIR [SIZE [DTYPE]]   (started by tests/bench/run: base, float32)
local weft = require "weft"
local dir, size, dtype = arg[1], arg[2] or "base", arg[3] or "float32"
local image, path = weft.io.image, dir .. "/model.safetensors"
weft.manual_seed(1)
local model = weft.models.dinov2.new(size)
require("weft.models.export").encoder(model, dir, { preprocessing = { resize = 256, size = 224, mean = image.mean, std = image.std } })
if dtype ~= "float32" then
  local state = assert(weft.load(path))
  for name, t in pairs(state) do state[name] = t:to(dtype) end
  assert(weft.save(path, state, { format = "pt" }))
end
