-- tables.lua: the last words of a run: what it learned, phase by phase, beside chance.
local M = {}

local function percent(v) return v and ("%5.1f %%"):format(100 * v) or "      -" end

---Lines of the retrieval and matching tables.
---@param history table[]  { label, values } of the run's evaluations
---@return string[]
function M.lines(history)
  local out = {}
  local columns = { { "picture -> text  R@1", "tr1" }, { "R@5", "tr5" }, { "R@10", "tr10" }, { "text -> picture  R@1", "ir1" },
    { "R@5", "ir5" }, { "R@10", "ir10" } }
  local head = { ("%-16s"):format "" }
  for _, c in ipairs(columns) do head[#head + 1] = ("%s"):format(c[1]) end
  out[#out + 1] = table.concat(head, "  ")
  local function row(label, get)
    local cells = { ("%-16s"):format(label) }
    for i, c in ipairs(columns) do
      local width = #columns[i][1]
      local text = percent(get(c[2]))
      cells[#cells + 1] = (" "):rep(width - #text) .. text
    end
    out[#out + 1] = table.concat(cells, "  ")
  end
  local last
  for _, e in ipairs(history) do
    if e.values.retrieval then
      last = e.values.retrieval
      row(e.label == "before" and "before training" or "after " .. e.label, function(k) return e.values.retrieval[k] end)
    end
  end
  if last then
    row("chance", function(k) return k:find "^ir" and last["ir_chance" .. k:match "%d+"] or last["chance" .. k:match "%d+"] end)
    out[#out + 1] = ("%d held-out pictures; a hit is the query's own picture or caption; ties count as misses"):format(last.pictures)
  end
  out[#out + 1] = ""
  for _, e in ipairs(history) do
    local m = e.values.itm
    if m and m.itm_acc then
      out[#out + 1] = ("%-16s  matching %s (pairs %s, random %s, hard %s); always saying no: %s"):format(
        e.label == "before" and "before training" or "after " .. e.label, percent(m.itm_acc), percent(m.pair_acc), percent(m.random_acc),
        percent(m.hard_acc), percent(m.majority))
    end
  end
  return out
end

---Prints tables and sample captions to the run's log.
function M.print(run, result)
  run.log:line("")
  for _, line in ipairs(M.lines(result.evaluations)) do run.log:line("%s", line) end
  run.log:line("")
  for _, s in ipairs(result.captions and result.captions.samples or {}) do
    run.log:line("%-28s  true: %-44s  generated: %s", s.name:match "[^/]*$", s.caption, s.generated)
  end
  run.log:line("")
  run.log:line("adapter: %s/adapter   sheet: %s/samples/sheet.png   curves: %s/curves.png", run.dir, run.dir, run.dir)
end

return M
