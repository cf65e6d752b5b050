-- eval.lua: `weft eval`: scores of a run's newest checkpoint, on its held-out pictures or on others.
local M = {
  summary = "score a run: retrieval, matching, captions",
  usage = "[SCORES] RUN [--data PLACE]",
  about = "SCORES are names by commas: retrieval, rerank, itm, captions; all that the recipe names if none is given.\n"
    .. "rerank: recall in two stages, the first candidates by similarity put in order by the matching head.\n"
    .. "Without --data the run's own held-out pictures are scored; with it every captioned picture of PLACE (a folder\n"
    .. "or a list, as in `weft new`), prepared and tokenized as the run's were. Each score says what it was made of.",
  options = {
    { "data", "captioned pictures to score, in place of the held-out ones", value = "PLACE" },
    { "recipe", "the run's recipe, where it is not found by its recorded name", value = "FILE.lua" },
    { "top", "candidates that rerank puts in order", value = "K", default = 16 },
    { "output", "write the figures as JSON", value = "FILE.json" },
    { "force", "also where the adapter changes nothing, as in a run that has not begun to train it" },
  },
  examples = { "weft eval runs/quickstart/2026-11-23-run", "weft eval retrieval,itm RUN --data other-photos --output scores.json",
    "weft eval rerank RUN/best --top 32" },
}

local function names_of(word, known)
  local list = {}
  for name in word:gmatch "[^,%s]+" do
    if not known[name] then
      local all = {}
      for k in pairs(known) do all[#all + 1] = k end
      table.sort(all)
      error({ usage = ("no score %s%s"):format(name, require("weft.cli.words").suggest(name, all)) }, 0)
    end
    list[#list + 1] = name
  end
  return list
end

local function percent(v) return v and ("%.1f %%"):format(100 * v) or "-" end

local function print_scores(values)
  local m, c = values.itm, values.captions
  for _, kind in ipairs { { values.retrieval, "" }, { values.reranked, ", the first %d by matching" } } do
    local r, how = kind[1], kind[2]
    if r then
      how = how:format(r.top)
      print(("picture -> text   R@1 %s  R@5 %s  R@10 %s%s"):format(percent(r.tr1), percent(r.tr5), percent(r.tr10), how))
      print(("text -> picture   R@1 %s  R@5 %s  R@10 %s%s"):format(percent(r.ir1), percent(r.ir5), percent(r.ir10), how))
      print(("chance            R@1 %s  R@5 %s  R@10 %s"):format(percent(r.chance1), percent(r.chance5), percent(r.chance10)))
      if r.texts then
        print(("chance, pictures  R@1 %s  R@5 %s  R@10 %s"):format(percent(r.ir_chance1), percent(r.ir_chance5), percent(r.ir_chance10)))
      end
    end
  end
  if m and m.itm_acc then
    print(("matching          %s right (pairs %s, random %s, hard %s); always saying no: %s"):format(percent(m.itm_acc), percent(m.pair_acc),
      percent(m.random_acc), percent(m.hard_acc), percent(m.majority)))
  end
  if c then
    print(("captions          loss %.4f, perplexity %.2f"):format(c.loss, c.perplexity))
    for _, s in ipairs(c.samples or {}) do
      print(("  %-28s  true: %-40s  generated: %s"):format(s.name:match "[^/]*$", s.caption, s.generated))
    end
  end
  for name, figures in pairs(values) do
    if name ~= "retrieval" and name ~= "reranked" and name ~= "itm" and name ~= "captions" and type(figures) == "table" then
      for k, v in pairs(figures) do
        if type(v) == "number" then print(("%-17s %s %.6g"):format(name, k, v)) end
      end
    end
  end
end

function M.run(args)
  local weft = require "weft"
  local files = require "weft.files"
  local known, want, dir = { retrieval = true, rerank = true, itm = true, captions = true }, nil, nil
  for _, word in ipairs(args) do
    if files.is_dir(word) and not dir then dir = word
    elseif not want and not word:find "/" then want = names_of(word, known)
    else error({ usage = ("one run is expected, got %s"):format(word) }, 0) end
  end
  if not dir then error({ usage = "a run's folder is expected" }, 0) end
  local run, message = weft.train.open(dir, { quiet = true, recipe_path = args.recipe, for_use = args.data ~= nil })
  if not run then error(message, 0) end
  -- a checkpoint that was named, of a phase in which adapters are frozen, is meant as it is
  local _, chosen = require("weft.train.checkpoint").place(dir)
  if not (args.force or chosen and require("weft.train.phases").adapters_frozen(run.model)) then
    require("weft.peft.merge").refuse_idle(run.model, dir, "the base would be scored; --force does it all the same")
  end
  run.log.dir = nil
  local whose
  if args.data then
    run.data.test = weft.data.all_of(run, args.data)
    whose = "all captioned pictures of " .. args.data
  end
  local top = args.top and tonumber(args.top)
  if args.top and not (top and top >= 1 and top % 1 == 0) then error({ usage = "--top wants a whole number from 1, got " .. args.top }, 0) end
  run.data.test:drop_damaged()
  local test = run.data.test
  if require("weft.data.rows").size(test.rows) == 0 then error("there are no pictures to score: nothing was held out; name some with --data", 0) end
  local functions = {}
  if want then
    for i, name in ipairs(want) do functions[i] = weft.eval[name] end
  else functions = run.recipe.evaluate end
  run.model:eval()
  local values = weft.no_grad(function()
    local out = {}
    for _, fn in ipairs(functions) do
      for k, v in pairs(fn(run, fn == weft.eval.rerank and top or nil)) do out[k] = v end
    end
    return out
  end)
  local protocols = require "weft.eval.protocol"
  local protocol = protocols.of(run, test, whose, values)
  print(("%s, step %d: %s"):format(dir, run.step, protocols.line(protocol)))
  print_scores(values)
  if args.output then
    local ok, why = require("weft.io.json").write(args.output, { run = dir, protocol = protocol, scores = values })
    if not ok then error(why, 0) end
  end
  return 0
end

return M
