-- terminal.lua: types at bin/weft through a pseudo-terminal, and hands back what it wrote.
local run = require "tests.support.command"

local M = {}

---Types at a pseudo-terminal, without what asks it to mark pastes in the output. A step waits for a text to appear (so many times), then types.
---@param steps table  { wait for, type, times? }...; options: words after bin/weft
---@param environment? string
---@return string out, string? history
function M.session(steps, environment)
  local folder, remove = run.folder()
  local script = { "out=" .. folder .. "/out; : >$out",
    "waits() { i=0; until [ $(grep -aoF -- \"$1\" $out | wc -l) -ge $2 ]; do sleep 0.05; "
      .. "i=$((i+1)); [ $i -gt 1200 ] && break; done; }",
    "export XDG_STATE_HOME=" .. folder .. "/state " .. (environment or ""),
    "unset LD_PRELOAD; {" }
  for _, step in ipairs(steps) do
    script[#script + 1] = ("waits '%s' %d; printf '%s'"):format(step[1], step[3] or 1, step[2])
  end
  script[#script + 1] = ("} | LD_PRELOAD= script -qec 'env LD_PRELOAD=%s bin/weft%s' /dev/null >$out")
    :format(os.getenv "LD_PRELOAD" or "", steps.options or "")
  script[#script + 1] = "cat $out"
  local _, out = run.run(table.concat(script, "\n"))
  local f = io.open(folder .. "/state/weft/history")
  local history = f and f:read "*a"
  if f then f:close() end
  remove()
  return (out:gsub("\27%[%?2004[hl]", "")), history
end

return M
