-- caption.lua: `weft caption`: what a trained run says about pictures.
local M = {
  summary = "describe pictures with a trained run",
  usage = "RUN PICTURE ...",
  options = {
    { "beams", "beams of the search; 1 is greedy", value = "N", default = 1 },
    { "top-p", "draw each word from the likeliest that make up this probability, in place of a search", value = "P" },
    { "seed", "with --top-p: other draws", value = "N", default = 0 },
  },
  examples = { "weft caption runs/quickstart/2026-11-23-run picture.jpg", "weft caption RUN a.png b.png --beams 3",
    "weft caption RUN/best a.png --top-p 0.9 --seed 2" },
}

-- An option's number, checked.
local function number(args, key, least, most, whole)
  if not args[key] then return nil end
  local n = tonumber(args[key])
  if not n or n < least or n > most or whole and n % 1 ~= 0 then
    error({ usage = ("--%s wants a %snumber from %g%s, got %s"):format(key, whole and "whole " or "", least,
      most < math.huge and " to " .. most or "", args[key]) }, 0)
  end
  return n
end

function M.run(args)
  if #args < 2 then error({ usage = "a run and at least one picture are expected" }, 0) end
  local how = { beams = number(args, "beams", 1, math.huge, true), top_p = number(args, "top-p", 0.001, 1),
    seed = number(args, "seed", 0, 2 ^ 53, true) }
  if how.top_p and how.beams and how.beams > 1 then error({ usage = "--beams and --top-p exclude each other" }, 0) end
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
        return run.model:caption({ pixels = pixels }, run.data, how)[1]
      end)
      print(("%s\t%s"):format(args[i], text))
    end
  end
  return failed > 0 and 1 or 0
end

return M
