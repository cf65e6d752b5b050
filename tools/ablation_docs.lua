-- ablation_docs.lua: puts an ablation's table and the upper part of its report into docs/tutorial.md:
-- weft run tools/ablation_docs.lua DIR. Needs chromium for docs/images/ablation.png.
local files = require "weft.files"
local results = require "weft.ablate.results"
local tables = require "weft.ablate.table"

local BEGIN, END = "<!-- ablation: begin", "<!-- ablation: end -->"
local WIDTH, HEIGHT = 900, 1240
local dir, page = arg[1], arg[2] or "docs/tutorial.md"
if not dir then error("an ablation's folder is expected: weft run tools/ablation_docs.lua runs/quickstart/ablate-1a2b3c4d", 0) end

local found = results.collect(dir)
local plan, keys = found.plan, tables.keys(found.plan)
local out = {}
local function put(format, ...) out[#out + 1] = select("#", ...) > 0 and format:format(...) or format end
local function number(v, format) return v and (format or "%.4f"):format(v) or "" end

local seconds, done = 0, 0
for _, c in ipairs(found.cells) do
  if c.state == "done" then seconds, done = seconds + c.seconds, done + 1 end
end
put("%d of %d cells, %d first phase%s shared among them; a cell took %.0f seconds of its own. %s by setting:\n", done, #found.cells, #found.warmups,
  #found.warmups == 1 and "" or "s", seconds / math.max(1, done), plan.metric)
local head, rule = {}, {}
for i, key in ipairs(keys) do head[i] = plan.labels[key] end
for _, h in ipairs { "runs", "mean", "spread over seeds", "parameters trained" } do head[#head + 1] = h end
for i = 1, #head do rule[i] = "--:" end
put("| %s |", table.concat(head, " | "))
put("|%s|", table.concat(rule, "|"))
local low, high, spread, n = math.huge, -math.huge, 0, 0
for _, s in ipairs(found.settings) do
  local row = {}
  for i, key in ipairs(keys) do row[i] = s.values[key] end
  for _, v in ipairs { ("%d/%d"):format(s.n, s.cells), number(s.mean), number(s.spread),
    s.trainable and require("weft.nn").commas(s.trainable) or "" } do row[#row + 1] = v end
  put("| %s |", table.concat(row, " | "))
  if s.mean then low, high = math.min(low, s.mean), math.max(high, s.mean) end
  if s.spread then spread, n = spread + s.spread, n + 1 end
end
local apart = 0
for i = 2, #found.settings do
  if found.settings[i].mean and select(2, results.compare(plan, found.settings[1], found.settings[i])) then apart = apart + 1 end
end
put("\nBetween the best and the worst setting lie %s; the mean spread over seeds is %s. Of the other settings %s can be told from the best.\n",
  number(high - low), number(n > 0 and spread / n or nil), apart == 0 and "none" or tostring(apart))
put "![A table of settings, a heat map of rank and alpha, and the scores against the parameters trained](images/ablation.png)"

local text = assert(files.read(page))
local from, to = text:find(BEGIN, 1, true), text:find(END, 1, true)
if not from or not to or to < from then error(page .. " has no marks for an ablation's part", 0) end
local ok, message = require("weft.report.ablation").write(found)
if not ok then error(message, 0) end
local picture = (page:match "^(.*)/[^/]*$" or ".") .. "/images/ablation.png"
local place = assert(io.popen(("realpath %s/report.html"):format(dir))):read "*l"
local shot = ("chromium --headless --no-sandbox --disable-gpu --hide-scrollbars --window-size=%d,%d --screenshot=%s file://%s >/dev/null 2>&1")
  :format(WIDTH, HEIGHT, picture, place)
if os.execute(shot) ~= 0 then error("chromium did not draw " .. place .. "; is Debian's package chromium installed?", 0) end
local first = text:find("\n", from, true)
assert(files.write(page, text:sub(1, first) .. "\n" .. table.concat(out, "\n") .. "\n\n" .. text:sub(to)))
print(("wrote %s and %s"):format(page, picture))
