-- report.lua: `weft report`: runs, or an ablation, as one HTML page.
local M = {
  summary = "one HTML page of runs: curves, tables, captions",
  usage = "RUN ... | ABLATION",
  about = "One run, several side by side, or an ablation's folder; RUN/best, or another checkpoint's path, is the run as\n"
    .. "it was there. The page holds all it shows, pictures too: it loads nothing, and reads in light and dark, on a\n"
    .. "phone and on paper. The runs are only read; their recipes are not executed.",
  options = { { "output", "where the page goes", value = "FILE.html", default = "RUN/report.html; of several: report.html" } },
  examples = { "weft report runs/quickstart/2026-11-23-run", "weft report runs/quickstart/2026-11-2*-run --output both.html" },
}

function M.run(args)
  if #args == 0 then error({ usage = "a run's folder is expected" }, 0) end
  local path = args.output or #args > 1 and "report.html"
  if not path then
    -- a checkpoint is left as it was written
    local dir, checkpoint = require("weft.train.checkpoint").place(args[1])
    path = (checkpoint and "%s/report-%s.html" or "%s/report.html"):format(dir:gsub("(.)/+$", "%1"), checkpoint and checkpoint:match "[^/]+$")
  end
  local ok, message
  if #args == 1 and require("weft.files").exists(args[1] .. "/plan.json") then
    ok, message = require("weft.report.ablation").write(require("weft.ablate.results").collect(args[1]), path)
  else
    ok, message = require("weft.report.html").write({ unpack(args) }, path)
  end
  if not ok then error(message, 0) end
  print(path)
  return 0
end

return M
