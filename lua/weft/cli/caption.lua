-- caption.lua: `weft caption`: what a trained run says about pictures.
local M = {
  summary = "describe pictures with a trained run",
  usage = "RUN PICTURE ...",
  options = { { "beams", "beams of the search; 1 is greedy", value = "N", default = 1 } },
  examples = { "weft caption runs/quickstart/2026-11-23-run picture.jpg", "weft caption RUN a.png b.png --beams 3" },
}

function M.run(args)
  if #args < 2 then error({ usage = "a run and at least one picture are expected" }, 0) end
  local weft = require "weft"
  local run, message = weft.train.open(args[1], { quiet = true, for_use = true })
  if not run then error(message, 0) end
  run.model:eval()
  local image = require "weft.io.image"
  local failed = 0
  for i = 2, #args do
    local picture, why = image.load(args[i])
    if not picture then
      io.stderr:write(why, "\n")
      failed = failed + 1
    else
      local o = run.data.train.options
      local small = image.center_crop(image.resize(picture, require("weft.data.captioned").resize_of(o)), o.size, o.size)
      local text = weft.no_grad(function()
        local pixels = image.normalize(small, { mean = o.mean, std = o.std }):unsqueeze(1)
        return run.model:caption({ pixels = pixels }, run.data, { beams = tonumber(args.beams) or 1 })[1]
      end)
      print(("%s\t%s"):format(args[i], text))
    end
  end
  return failed > 0 and 1 or 0
end

return M
