-- cuda.lua: what this build can do with GPUs: nothing, and why.
local M = {}

---Whether a GPU can be used, and the reason when not. Everything runs on the CPU then.
---@return boolean usable, string reason
function M.is_available() return false, "this build has no GPU library" end

return M
