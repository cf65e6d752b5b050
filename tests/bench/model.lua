-- model.lua: writes a DINOv2-base with random weights as a Hugging Face directory, for the rows that open one.
-- Usage: luajit tests/bench/model.lua DIR   (started by tests/bench/run)
local weft = require "weft"
local image = weft.io.image
weft.manual_seed(1)
local model = weft.models.dinov2.new "base"
require("weft.models.export").encoder(model, arg[1], { preprocessing = { resize = 256, size = 224, mean = image.mean, std = image.std } })
