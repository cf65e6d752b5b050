local weft = require "weft"
local command = require "tests.support.command"
local html = require "weft.report.html"
local json = require "weft.io.json"
local page = require "tests.report.page"
local tiny = require "tests.support.tiny"

local root, remove_pictures, first, second, removes
setup(function()
  removes = {}
  root, remove_pictures = tiny.pictures(24)
  first, removes[1] = tiny.run(root, { "epochs=3", "warmup_epochs=1" })
  first:train()
  second, removes[2] = tiny.run(root, { "epochs=3", "warmup_epochs=1", "lora.rank=3", "seed=4" })
  second:train()
end)
teardown(function()
  remove_pictures()
  for _, remove in ipairs(removes) do remove() end
end)

local function parsed(dirs)
  local text = assert(html.report(dirs))
  return page.parse(text), text
end

local function table_with(tree, heading)
  for _, e in ipairs(page.all(tree, "table")) do
    local rows = page.cells(e)
    for _, cell in ipairs(rows[1]) do
      if cell == heading then return rows end
    end
  end
end

describe("a report of runs whose held-out pictures differ", function()
  it("has a table of recall for each, and says that they can't be compared", function()
    local tree, text = parsed { first.dir, second.dir }
    local tables = 0
    for _, e in ipairs(page.all(tree, "table")) do
      local rows, names = page.cells(e), {}
      if rows[1][3] == "picture → text R@1" and rows[1][4] == "R@5" then
        tables = tables + 1
        for i = 2, #rows - 1 do names[rows[i][1]] = true end
        local n = 0
        for _ in pairs(names) do n = n + 1 end
        assert.equal(1, n)
        assert.equal(5, #rows)
      end
    end
    assert.equal(2, tables)
    assert.truthy(text:find("These runs were scored in 2 ways", 1, true))
    assert.is_nil((select(2, parsed { first.dir })):find("These runs were scored", 1, true))
  end)

  it("says of every score what it was made of, and mixes no two protocols in a column of the top table either", function()
    local tree, text = parsed { first.dir, second.dir }
    local tops = {}
    for _, e in ipairs(page.all(tree, "table")) do
      local rows = page.cells(e)
      if rows[1][2] == "last loss" then tops[#tops + 1] = rows end
    end
    assert.equal(2, #tops)
    for k, run in ipairs { first, second } do
      local result = tiny.json(run.dir .. "/result.json")
      local r, p = result.retrieval, result.protocol
      assert.equal(3, #tops[k])
      assert.equal(("%.1f %%"):format(100 * r.r_mean), tops[k][2][3])
      assert.equal("chance; always no", tops[k][3][1])
      assert.equal(("%.1f %%"):format(100 * (r.chance1 + r.chance5 + r.chance10) / 3), tops[k][3][3])
      local line = ("Scored: held-out pictures of the run: %d pictures"):format(p.pictures)
      assert.truthy(text:find(line, 1, true), line)
      assert.truthy(text:find(("(hash %s); short edge"):format(p.hash:sub(1, 8)), 1, true), p.hash)
      assert.truthy(text:find("ranked by ITC similarity", 1, true))
    end
  end)

  it("keeps recalls in two stages apart, by the number of candidates", function()
    local folder, remove = command.folder()
    local dirs = {}
    for i, top in ipairs { 4, 8 } do
      dirs[i] = folder .. "/" .. top
      command.run(("cp -r %s %s"):format(first.dir, dirs[i]))
      local result = tiny.json(dirs[i] .. "/result.json")
      local last = result.evaluations[#result.evaluations].values
      last.reranked = { top = top, tr1 = top / 10, ir1 = 0.1, chance1 = 0.05 }
      assert(json.write(dirs[i] .. "/result.json", result))
    end
    local tree, text = parsed(dirs)
    for _, top in ipairs { 4, 8 } do
      assert.truthy(text:find(("in two stages: the first %d by ITC similarity, in the order of the matching head"):format(top), 1, true))
      local found = 0
      for _, e in ipairs(page.all(tree, "table")) do
        local rows = page.cells(e)
        if rows[2][3] == ("%.1f %%"):format(10 * top) then
          found = found + 1
          assert.equal(3, #rows)  -- its head, the one run, chance
        end
      end
      assert.equal(1, found)
    end
    remove()
  end)
end)

describe("a report of a run", function()
  it("is well-formed and refers to nothing outside itself", function()
    local tree, text = parsed { first.dir }
    local seen = 0
    for _, tag in ipairs { "img", "script", "link", "iframe", "a", "image", "use", "source" } do
      for _, e in ipairs(page.all(tree, tag)) do
        for _, name in ipairs { "src", "href", "srcset" } do
          local v = e.attributes[name]
          if v then
            seen = seen + 1
            assert.truthy(v:find "^data:image/png;base64," or v:find "^#", v:sub(1, 60))
          end
        end
      end
    end
    assert.is_true(seen > 10)
    assert.is_nil(text:gsub("http://www.w3.org/2000/svg", ""):find "https?:")
    assert.is_nil(text:find("url(", 1, true))
    assert.is_nil(text:find("@import", 1, true))
    assert.is_nil(text:find "fetch%(")
  end)

  it("has a target for every link inside it", function()
    local tree = parsed { first.dir }
    local ids = {}
    for _, e in ipairs(page.all(tree, "section")) do ids["#" .. e.attributes.id] = true end
    local links = page.all(tree, "a")
    assert.equal(7, #links)
    for _, a in ipairs(links) do assert.is_true(ids[a.attributes.href]) end
  end)

  it("says by what the adapter acts, and what steps took of memory beside the estimate", function()
    local folder, remove = command.folder()
    command.run(("cp -r %s %s/run"):format(first.dir, folder))
    local result = tiny.json(first.dir .. "/result.json")
    assert.equal(2, #result.memory)
    result.memory[1].estimated, result.memory[2].estimated = 1.1 * result.memory[1].measured, nil
    assert(json.write(folder .. "/run/result.json", result))
    local tree = parsed { folder .. "/run" }
    remove()
    assert.truthy(page.text(tree):find("vision: adapter default: r 2, alpha 4: x2; 4 modules", 1, true))
    assert.same({ 2 }, tiny.json(first.dir .. "/model.json").scales.vision)
    local size, rows = require("weft.train.memory").size, table_with(tree, "memory of a step")
    assert.equal(3, #rows)
    for i, m in ipairs(result.memory) do
      assert.same({ m.name, size(m.measured) }, { rows[i + 1][1], rows[i + 1][2] })
    end
    assert.same({ size(result.memory[1].estimated), "+10.0 %" }, { rows[2][3], rows[2][4] })
    assert.same({ "–", "–" }, { rows[3][3], rows[3][4] })
  end)

  it("draws the numbers of metrics.jsonl, each of them", function()
    local tree, rows = parsed { first.dir }, tiny.metrics(first.dir)
    assert.is_true(#rows > 10)
    for _, name in ipairs { "total", "itc", "itm", "lm", "memory" } do
      local data = assert(page.chart(tree, name), name)
      assert.equal(1, #data.series)
      assert.equal(#rows, #data.series[1].x)
      for i, row in ipairs(rows) do
        assert.equal(row.step, data.series[1].x[i])
        assert.equal(row["loss_" .. name], data.series[1].y[i])
      end
    end
    local norm = page.chart(tree, "gradient")
    for i, row in ipairs(rows) do assert.equal(row.grad_norm, norm.series[1].y[i]) end
  end)

  it("puts a line at the place that its axis gives to its value", function()
    local tree = parsed { first.dir }
    local data, figure = page.chart(tree, "total")
    local places = {}
    for _, e in ipairs(page.all(figure, "path")) do
      if e.attributes.class:find "faint" or #page.all(figure, "path") == 1 then
        for x, y in e.attributes.d:gmatch "[ML]([%d.-]+) ([%d.-]+)" do places[#places + 1] = { tonumber(x), tonumber(y) } end
      end
    end
    local s, f = data.series[1], data.frame
    assert.equal(#s.x, #places)
    for i = 1, #s.x do
      local x = f[1] + f[3] * (s.x[i] - data.x[1]) / (data.x[2] - data.x[1])
      local y = f[2] + f[4] * (1 - (s.y[i] - data.y[1]) / (data.y[2] - data.y[1]))
      assert.is_true(math.abs(x - places[i][1]) < 0.01 and math.abs(y - places[i][2]) < 0.01)
    end
  end)

  it("marks where a phase begins in every loss", function()
    local tree, at = parsed { first.dir }, nil
    for i, row in ipairs(tiny.metrics(first.dir)) do
      if row.phase == 2 and not at then at = i end
    end
    local n = 0
    for _, name in ipairs { "total", "itc", "itm", "lm", "memory" } do
      local data, figure = page.chart(tree, name)
      local mark = page.all(figure, "line", "mark")
      assert.equal(1, #mark)
      local f = data.frame
      local x = f[1] + f[3] * (at - data.x[1]) / (data.x[2] - data.x[1])
      assert.is_true(math.abs(tonumber(mark[1].attributes.x1) - x) < 0.01)
      assert.truthy(page.text(figure):find("Phase 2", 1, true))
      n = n + 1
    end
    assert.equal(5, n)
  end)

  it("shows the rates of the groups, the adapters' in phase 2 alone", function()
    local data, adapters = page.chart(parsed { first.dir }, "learning"), nil
    for _, s in ipairs(data.series) do
      if s.name:find "lora_A" then adapters = s end
    end
    local rows = tiny.metrics(first.dir)
    for i, x in ipairs(adapters.x) do
      assert.equal(2, rows[x].phase)
      assert.equal(rows[x].lr_lora_A, adapters.y[i])
    end
  end)

  it("says recalls and matching as result.json has them, chance beside", function()
    local result = tiny.json(first.dir .. "/result.json")
    local rows = table_with(parsed { first.dir }, "R@5")
    assert.same({ "before training", "after Phase 1", "after Phase 2", "chance" }, { rows[2][1], rows[3][1], rows[4][1], rows[5][1] })
    for i, e in ipairs(result.evaluations) do
      local r = e.values.retrieval
      for k, name in ipairs { "tr1", "tr5", "tr10", "ir1", "ir5", "ir10", "r_mean" } do
        assert.equal(("%.1f %%"):format(100 * r[name]), rows[i + 1][k + 1])
      end
    end
    assert.equal(("%.1f %%"):format(100 * result.retrieval.chance5), rows[5][3])
    local matching = table_with(parsed { first.dir }, "always no")
    assert.equal(("%.1f %%"):format(100 * result.itm.hard_acc), matching[4][5])
  end)

  it("names what differs from the recipe's defaults, and nothing else", function()
    local rows = table_with(parsed { first.dir }, "default")
    local found = {}
    for i = 2, #rows do found[rows[i][1]] = { rows[i][2], rows[i][3] } end
    assert.same({ "2", "16" }, found["lora.rank"])
    assert.same({ "3", "50" }, found.epochs)
    assert.is_nil(found["lora.dropout"])
    assert.is_nil(found["itm.source"])
    assert.is_nil(found.clip)
  end)

  it("counts parameters by part, those that train in each phase", function()
    local rows = table_with(parsed { first.dir }, "trained in Phase 2")
    local by = {}
    for i = 2, #rows do by[rows[i][1]] = rows[i] end
    local trainable = tiny.json(first.dir .. "/result.json").trainable
    local commas = weft.nn.commas
    assert.same({ "all", commas(first.model:count()), commas(trainable["Phase 1"]), commas(trainable["Phase 2"]) }, by.all)
    assert.equal("0", by.vision[3])
    assert.equal(commas(first.model.vision:count(true)), by.vision[4])
  end)

  it("shows held-out pictures with what was said of each after each phase", function()
    local samples = tiny.json(first.dir .. "/result.json").captions.samples
    local cards = page.all(parsed { first.dir }, "div", "sample")
    assert.equal(#samples, #cards)
    for i, s in ipairs(samples) do
      assert.equal(1, #page.all(cards[i], "img"))
      assert.truthy(page.text(cards[i]):find(s.caption, 1, true))
      assert.truthy(page.text(cards[i]):find("after Phase 2" .. (s.generated == "" and "(nothing)" or s.generated), 1, true))
    end
  end)

  it("lies in the run's folder at its end", function()
    local text = tiny.read(first.dir .. "/report.html")
    assert.equal(assert(html.report { first.dir }), text)
  end)
end)

describe("a report of several runs", function()
  it("lays their losses over each other and names the settings that differ", function()
    local tree = parsed { first.dir, second.dir }
    local data = page.chart(tree, "total")
    assert.equal(2, #data.series)
    for k, run in ipairs { first, second } do
      local rows = tiny.metrics(run.dir)
      assert.equal(rows[#rows].loss_total, data.series[k].y[#rows])
    end
    local differ = table_with(tree, "key")
    assert.equal(3, #differ)
    assert.equal("lora.rank", differ[2][1])
    assert.same({ "2", "3" }, { differ[2][2], differ[2][3] })
    assert.equal("seed", differ[3][1])
  end)

  it("tells runs of the same name apart by the folders above", function()
    local names = table_with(parsed { first.dir, second.dir }, "key")[1]
    assert.not_equal(names[2], names[3])
  end)
end)

describe("a report", function()
  local copy, remove
  before_each(function()
    copy, remove = command.folder()
    command.run(("cp -r %s/. %s"):format(first.dir, copy))
  end)
  after_each(function() remove() end)

  it("escapes what captions, names and settings hold", function()
    local evil = [[</td><script>alert("x")</script>&amp;<img src=http://e/x.png onerror='1'>]]
    local result, config = tiny.json(copy .. "/result.json"), tiny.json(copy .. "/config.json")
    for _, e in ipairs(result.evaluations) do
      for i, s in ipairs(e.values.captions.samples) do s.generated, s.caption, s.name = evil, evil, evil .. i end
    end
    config.config.data.root, config.path = evil, evil
    assert(json.write(copy .. "/result.json", result))
    assert(json.write(copy .. "/config.json", config))
    local clean, tree = parsed { first.dir }, parsed { copy }
    for _, tag in ipairs { "script", "img", "td", "div" } do assert.equal(#page.all(clean, tag), #page.all(tree, tag), tag) end
    assert.truthy(page.text(page.all(tree, "div", "sample")[1]):find(evil, 1, true))
  end)

  it("is made of a run that has not come to its end, and says so", function()
    command.run(("rm %s/result.json %s/model.json; printf '{\"step\": 99, \"loss' >>%s/metrics.jsonl"):format(copy, copy, copy))
    local tree = parsed { copy }
    local text = page.text(tree)
    assert.truthy(text:find("not at its end: step " .. #tiny.metrics(first.dir), 1, true))
    assert.truthy(text:find("1 lines of metrics.jsonl can't be read", 1, true))
    assert.is_truthy(table_with(tree, "R@5"))  -- from the newest checkpoint
  end)

  it("leaves a gap where a number is not finite", function()
    local rows = tiny.metrics(copy)
    local out = {}
    for i, row in ipairs(rows) do
      if i == 3 then row.loss_total = "nan" end
      out[i] = json.encode(row)
    end
    tiny.write(copy .. "/metrics.jsonl", table.concat(out, "\n") .. "\n")
    local data = page.chart(parsed { copy }, "total")
    assert.equal(#rows - 1, #data.series[1].x)
  end)

  it("thins what is drawn of a long run, and says so", function()
    local out = {}
    for i = 1, 3000 do out[i] = ('{"step": %d, "phase": 1, "loss_total": %g}'):format(i, i) end
    tiny.write(copy .. "/metrics.jsonl", table.concat(out, "\n") .. "\n")
    local data, figure = page.chart(parsed { copy }, "total")
    assert.is_true(#data.series[1].x <= 1200)
    assert.equal(3000, data.series[1].x[#data.series[1].x])
    assert.truthy(page.text(figure):find("every 3 steps", 1, true))
  end)
end)

describe("a report of a checkpoint", function()
  it("is of the run as it was there", function()
    local rows = tiny.metrics(first.dir)
    local best = tiny.json(first.dir .. "/best/state.json")
    local tree = parsed { first.dir .. "/best/" }
    local data = page.chart(tree, "total")
    assert.equal(best.step, data.series[1].x[#data.series[1].x])
    assert.is_true(best.step <= #rows)
    local early = first.dir .. "/ckpt/" .. ("step_%08d"):format(rows[#rows].step / 3)
    local text = page.text(parsed { early })
    assert.truthy(text:find(("as it was at step %d, Phase 1"):format(rows[#rows].step / 3), 1, true), text)
    assert.truthy(text:find("after Phase 1", 1, true))
    assert.is_nil(text:find("after Phase 2", 1, true))
    -- beside its run, the phases are marked as far as each has come
    tree = parsed { early, first.dir }
    local names, marked = table_with(tree, "last loss"), 0
    assert.truthy(names[2][1]:find("/step_", 1, true), names[2][1])
    for _, e in ipairs(page.all(tree, "line")) do marked = marked + (e.attributes.class == "mark" and 1 or 0) end
    assert.is_true(marked > 0)
  end)

  it("goes beside it, not into it", function()
    local code, out = command.weft(("report %s/best/"):format(first.dir))
    assert.equal(0, code)
    assert.equal(first.dir .. "/report-best.html\n", out)
    page.parse(tiny.read(first.dir .. "/report-best.html"))
    command.run(("rm %s/report-best.html"):format(first.dir))
  end)
end)

describe("weft report", function()
  it("writes RUN/report.html, or the file that it is told", function()
    local folder, remove = command.folder()
    local code, out = command.weft(("report %s/"):format(first.dir))
    assert.equal(0, code)
    assert.equal(first.dir .. "/report.html\n", out)
    code = command.weft(("report %s %s --output %s/both.html"):format(first.dir, second.dir, folder))
    assert.equal(0, code)
    page.parse(tiny.read(folder .. "/both.html"))
    remove()
  end)

  it("says what is no run", function()
    local code, _, err = command.weft("report " .. root)
    assert.equal(1, code)
    assert.truthy(err:find(root .. " is no run", 1, true), err)
    assert.equal(2, (command.weft "report"))
  end)
end)
