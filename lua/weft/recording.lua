-- recording.lua: while a step is captured as a graph nothing runs, so there are no values to read. What
-- wants some says so here, and is given them after each launch. The recorder is train/recorder.lua.
local M = {}

---The recorder of the capture under way; nil when operators run as they are called.
M.active = nil

---fn(list, ...) with the elements of each tensor: at once, or after each launch of what is captured.
---@param tensors weft.Tensor[]
---@param fn function
function M.later(tensors, fn)
  if M.active then return M.active:later(tensors, fn) end
  fn(unpack(require("weft.tensor.read").lists(tensors)))
end

return M
