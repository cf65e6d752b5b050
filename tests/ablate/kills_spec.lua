-- An ablation whose driver and cells are killed at moments that nobody chose. WEFT_KILLS and WEFT_KILL_SEED
-- ask for more of them and for others: WEFT_KILLS=30 WEFT_KILL_SEED=7 busted ... tests/ablate/kills_spec.lua
require "weft"
local command = require "tests.support.command"
local support = require "tests.ablate.support"
local files = require "weft.files"
local train = require "weft.train"

local KILLS, SEED = tonumber(os.getenv "WEFT_KILLS" or 4), tonumber(os.getenv "WEFT_KILL_SEED" or 1)

-- Starts the driver, kills what `who` says after a while; "done" when it came to its end before that.
local ROUND = [[
  %s >>%s/out.txt 2>&1 &
  driver=$!
  for i in $(seq %d); do
    kill -0 $driver 2>/dev/null || break
    sleep 0.05
  done
  who=%s
  if ! kill -0 $driver 2>/dev/null; then wait $driver && echo done || echo "failed $?"; exit 0; fi
  [ $who = cells ] || kill -9 $driver
  if [ $who != driver ]; then
    for lock in %s/locks/*; do
      pid=$(tail -n 1 $lock 2>/dev/null | cut -d' ' -f1)
      [ -n "$pid" ] && grep -qs '%s/' /proc/$pid/cmdline && kill -9 $pid
    done
  fi
  if [ $who = cells ]; then wait $driver; echo "went on $?"; else wait $driver 2>/dev/null; echo killed; fi
]]

describe("an ablation that is killed again and again #slow", function()
  it("comes to the weights of whole runs, and does nothing twice that was done", function()
    local root, remove = support.pictures()
    local folder, remove_folder = command.folder()
    local dir, more = folder .. "/grid", { "epochs=6", "warmup_epochs=2" }
    local fixed = {}
    for _, text in ipairs(support.overrides(root, more)) do
      if not text:find "^lora.rank=" then fixed[#fixed + 1] = "'" .. text .. "'" end
    end
    local line = ("bin/weft ablate recipes/stage1.lua %s lora.rank=2,3,4 --jobs 2 --out %s"):format(table.concat(fixed, " "), dir)
    local finished, story = {}, {}
    local function look(final)
      for _, rank in ipairs { 2, 3, 4 } do
        local path = ("%s/cells/rank%d/result.json"):format(dir, rank)
        local _, stamp = command.run(("stat -c '%%i %%Y' %s 2>/dev/null"):format(path))
        if finished[rank] then assert.equal(finished[rank], stamp, ("rank %d was done, and done again: %s"):format(rank, table.concat(story, " "))) end
        if stamp ~= "" then finished[rank] = stamp end
        if final then assert.truthy(finished[rank], files.read(folder .. "/out.txt")) end
      end
    end
    local whos = { "driver", "cells", "both" }
    for i = 1, KILLS do
      local hash = require("weft.random").hash("kill/" .. i, SEED)
      local ticks, who = tonumber(hash % 60ULL) + 5, whos[tonumber((hash / 64ULL) % 3ULL) + 1]
      local code, out, err = command.run(ROUND:format(line, folder, ticks, who, dir, dir))
      assert.equal(0, code, out .. err)
      story[#story + 1] = ("[%s after %.2f s: %s]"):format(who, ticks * 0.05, (out:gsub("%s+$", "")))
      assert.falsy(out:find "failed", files.read(folder .. "/out.txt"))
      look(false)
    end
    assert.equal(0, (command.run(line .. " >>" .. folder .. "/out.txt 2>&1")), files.read(folder .. "/out.txt"))
    look(true)
    for _, rank in ipairs { 2, 3, 4 } do
      more[3] = "lora.rank=" .. rank
      local whole = train.start(train.load_recipe("recipes/stage1.lua", support.overrides(root, more)),
        { dir = ("%s/whole%d"):format(folder, rank), quiet = true }):train()
      assert.equal(whole.hashes.final, support.json(("%s/cells/rank%d/result.json"):format(dir, rank)).hashes.final)
    end
    if os.getenv "WEFT_KILLS" then print(table.concat(story, " ")) end
    remove()
    remove_folder()
  end)
end)
