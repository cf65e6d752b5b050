-- readme_figures.lua: puts a run's curves and tables into README.md: weft run tools/readme_figures.lua RUN
-- Writes docs/images/curves.png and the part of README.md between the marks. Pictures of the data stay out.
local weft = require "weft"
local files = require "weft.files"

local BEGIN, END = "<!-- run: begin", "<!-- run: end -->"
local dir, readme = arg[1], arg[2] or "README.md"
if not dir then error("a run's folder is expected: weft run tools/readme_figures.lua runs/quickstart/2026-11-23-run", 0) end

local result = assert(weft.load(dir .. "/result.json"))
local env = assert(weft.load(dir .. "/env.json"))

local out = {}
local function put(format, ...) out[#out + 1] = select("#", ...) > 0 and format:format(...) or format end
local function percent(v) return type(v) == "number" and ("%.1f %%"):format(100 * v) or "" end
local function cell(text) return (text:gsub("[|\r\n]", " ")) end
local function label(e) return e.label == "before" and "before training" or "after " .. e.label end

put("A real run, %s on %d %s (%s kernels):\n", result.seconds < 90 and ("%d seconds"):format(result.seconds)
  or ("%.0f minutes"):format(result.seconds / 60), env.threads, env.threads == 1 and "thread" or "threads", env.cpu_path)
put "![Losses by step: one panel a loss, the change of phases marked](docs/images/curves.png)\n"

local last
for _, e in ipairs(result.evaluations) do last = e.values.retrieval or last end
if last then
  put("Recall on %d held-out pictures, whose captions no training picture has:\n", last.pictures)
  put "| | picture → text R@1 | R@5 | R@10 | text → picture R@1 | R@5 | R@10 |"
  put "|---|--:|--:|--:|--:|--:|--:|"
  for _, e in ipairs(result.evaluations) do
    local r = e.values.retrieval or {}
    put("| %s | %s | %s | %s | %s | %s | %s |", label(e), percent(r.tr1), percent(r.tr5), percent(r.tr10),
      percent(r.ir1), percent(r.ir5), percent(r.ir10))
  end
  put("| chance | %s | %s | %s | %s | %s | %s |\n", percent(last.chance1), percent(last.chance5), percent(last.chance10),
    percent(last.chance1), percent(last.chance5), percent(last.chance10))
end

local final = result.evaluations[#result.evaluations].values
if final.itm and final.itm.itm_acc then
  put("Matching a picture with its caption, a random one and the most alike: %s right; always saying no: %s.\n",
    percent(final.itm.itm_acc), percent(final.itm.majority))
end
if final.captions then
  put "Captions of held-out pictures:\n"
  put "| picture | its caption | generated |"
  put "|---|---|---|"
  for _, s in ipairs(final.captions.samples) do
    put("| %s | %s | %s |", cell(s.name:match "[^/]*$"), cell(s.caption), cell(s.generated))
  end
end

local text = assert(files.read(readme))
local from, to = text:find(BEGIN, 1, true), text:find(END, 1, true)
if not from or not to or to < from then error(readme .. " has no marks for a run's part", 0) end
local first = text:find("\n", from, true)
local curves = assert(files.read(dir .. "/curves.png"))
local folder = (readme:match "^(.*)/[^/]*$" or ".") .. "/docs/images"
assert(files.make_dirs(folder))
assert(files.write(folder .. "/curves.png", curves))
assert(files.write(readme, text:sub(1, first) .. "\n" .. table.concat(out, "\n") .. "\n\n" .. text:sub(to)))
print(("%s and %s/curves.png show %s"):format(readme, folder, dir))
