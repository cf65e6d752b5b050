require "weft"
local command = require "tests.support.command"
local page = require "tests.report.page"
local support = require "tests.ablate.support"
local tiny = require "tests.support.tiny"

describe("an ablation's report", function()
  local root, remove, folder, remove_folder, dir, out, tree, text
  setup(function()
    root, remove = support.pictures()
    folder, remove_folder = command.folder()
    dir = folder .. "/grid"
    local fixed = {}
    for _, word in ipairs(support.overrides(root, { "epochs=3", "warmup_epochs=1" })) do
      if not word:find "^seed=" and not word:find "^lora.rank=" and not word:find "^lora.alpha=" then fixed[#fixed + 1] = "'" .. word .. "'" end
    end
    local code
    code, out = command.weft(("ablate recipes/stage1.lua %s lora.rank=2,3 lora.alpha=2,4 seed=1,2 --jobs 2 --out %s")
      :format(table.concat(fixed, " "), dir))
    assert.equal(0, code, out)
    text = tiny.read(dir .. "/report.html")
    tree = page.parse(text)
  end)
  teardown(function()
    remove()
    remove_folder()
  end)

  it("is named at the end, well-formed, and loads nothing", function()
    assert.truthy(out:find("report: " .. dir .. "/report.html", 1, true), out)
    assert.is_nil(text:gsub("http://www.w3.org/2000/svg", ""):find "https?:")
    for _, e in ipairs(page.all(tree, "img")) do assert.truthy(e.attributes.src:find "^data:image/png") end
    assert.is_true(#page.all(tree, "img") > 0)
  end)

  local function setting(values)
    for _, s in ipairs(tiny.json(dir .. "/table.json").settings) do
      if s.values["lora.rank"] == values[1] and s.values["lora.alpha"] == values[2] then return s end
    end
  end

  it("has a heat map of rank and alpha with the means, the best framed", function()
    local map = page.all(tree, "figure", "heat")
    assert.equal(1, #map)
    local words, places = {}, {}
    for _, e in ipairs(page.all(map[1], "text")) do
      if e.attributes.class == "value" then words[#words + 1] = page.text(e) end
    end
    for _, e in ipairs(page.all(map[1], "rect")) do places[#places + 1] = e end
    assert.equal(4, #words)
    local k, best = 0, 0
    for _, rank in ipairs { "2", "3" } do
      for _, alpha in ipairs { "2", "4" } do
        k = k + 1
        local s = setting { rank, alpha }
        assert.truthy(words[k]:find(("%.4g"):format(s.mean), 1, true), words[k])
        local framed = places[k].attributes.class:find "best" ~= nil
        assert.equal(s.best or false, framed)
        best = best + (framed and 1 or 0)
      end
    end
    assert.equal(1, best)
  end)

  it("tells the effective scale beside rank and alpha, wherever they stand", function()
    local scales = { ["2 2"] = "1", ["2 4"] = "2", ["3 2"] = "0.6667", ["3 4"] = "1.333" }
    for _, s in ipairs(tiny.json(dir .. "/table.json").settings) do
      assert.equal(tonumber(scales[s.values["lora.rank"] .. " " .. s.values["lora.alpha"]]), s.effective_scale)
    end
    assert.truthy(out:find "alpha%s+rank%s+scale%s+runs")
    assert.truthy(out:find "2%s+3%s+x0.6667%s+2/2")
    local csv = tiny.read(dir .. "/table.csv")
    assert.truthy(csv:find("lora.alpha,lora.rank,seed,effective_scale,state", 1, true))
    assert.truthy(csv:find(",4,3,1,1.333,done", 1, true), csv)
    local rows = page.cells(page.all(tree, "table")[1])
    assert.equal("effective scale", rows[1][3])
    for i = 2, #rows do assert.equal("×" .. scales[rows[i][2] .. " " .. rows[i][1]], rows[i][3]) end
  end)

  it("says what the scores were made of, and of cells that were scored otherwise that they were", function()
    for seed = 1, 2 do
      assert.truthy(page.text(tree):find(("Scored (seed %d): held-out pictures of the run: 4 pictures"):format(seed), 1, true))
    end
    assert.is_nil(page.text(tree):find("can be compared", 1, true))
    local path = dir .. "/cells/alpha4-rank3-seed2/result.json"
    local old = tiny.read(path)
    local result = tiny.json(path)
    for _, e in ipairs(result.evaluations) do e.protocol.preparation = "both sides to 13" end
    assert(require("weft.io.json").write(path, result))
    local other = require("weft.report.ablation").report(require("weft.ablate.results").collect(dir))
    tiny.write(path, old)
    assert.truthy(other:find("These cells were scored in 3 ways", 1, true))
    assert.truthy(other:find("Scored (alpha4-rank3-seed2): ", 1, true))
  end)

  it("has a row a setting, best first, with the sentences of the verdict", function()
    local rows = page.cells(page.all(tree, "table")[1])
    local found = tiny.json(dir .. "/table.json")
    assert.equal(5, #rows)
    for i, s in ipairs(found.settings) do
      assert.equal(s.values["lora.alpha"], rows[i + 1][1])
      assert.equal(("%.4g"):format(s.mean), rows[i + 1][4])
      assert.equal("2/2", rows[i + 1][6])
    end
    for _, line in ipairs(found.verdict) do assert.truthy(page.text(tree):find(line, 1, true)) end
  end)

  it("lays the means of the losses over the seeds over each other", function()
    local data = page.chart(tree, "total")
    assert.equal(4, #data.series)
    local s = tiny.json(dir .. "/table.json").settings[1].values
    local a, b = {}, {}
    for seed, list in pairs { a, b } do
      for i, row in ipairs(tiny.metrics(("%s/cells/alpha%s-rank%s-seed%d"):format(dir, s["lora.alpha"], s["lora.rank"], seed))) do
        list[i] = row.loss_total
      end
    end
    assert.equal(#a, #data.series[1].y)
    for i = 1, #a do assert.equal((a[i] + b[i]) / 2, data.series[1].y[i]) end
  end)

  it("sets the score against the parameters trained", function()
    local figure = page.all(tree, "figure", "points")
    assert.equal(1, #figure)
    assert.equal(4, #page.all(figure[1], "circle"))
    assert.equal(4, #page.all(figure[1], "line", "bar"))
  end)

  it("has captions of the best and the worst, and every cell", function()
    local cards = page.all(tree, "div", "sample")
    assert.is_true(#cards > 0)
    assert.truthy(page.text(cards[1]):find "best.*worst")
    local rows = page.cells(page.all(page.all(tree, "details")[1], "table")[1])
    assert.equal(9, #rows)
    assert.equal("2", rows[3][4])  -- the seed
  end)

  it("is made again by weft report and by --status", function()
    os.remove(dir .. "/report.html")
    local code, said = command.weft("report " .. dir)
    assert.equal(0, code)
    assert.equal(dir .. "/report.html\n", said)
    assert.equal(text, tiny.read(dir .. "/report.html"))
    os.remove(dir .. "/report.html")
    assert.equal(0, (command.weft("ablate --status " .. dir)))
    assert.equal(text, tiny.read(dir .. "/report.html"))
  end)
end)
