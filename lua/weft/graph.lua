-- graph.lua: what a function gives a GPU to do, captured once and launched as one as often as wanted.
local ffi = require "ffi"
local A = require "weft.args"
local C = require("weft.core").lib

local Graph = {}
Graph.__index = Graph

local M = {}

---Captures what fn(graph) gives a GPU to do; none of it runs before launch(). A launch computes anew
---from what the tensors hold that fn read; those that it made stay where they are and are to be read
---after a launch (keep() what is wanted). Reading a value inside fn is refused, and so is data of the
---host. Draws are the same at each launch.
---
---    local x, y = weft.ones { 4, device = "cuda" }, nil
---    local graph = weft.cuda.graph("cuda", function() y = (x * 2):keep() end)
---    x:fill_(3) graph:launch() print(y)
---@param device string
---@param fn function
---@return table graph  launch(), free(), kernels, bytes (its own memory)
function M.capture(device, fn)
  local p = C.weft_graph_begin(A.device(device, "graph"))
  if p == nil then A.fail() end
  local self = setmetatable({ p = ffi.gc(p, C.weft_graph_free) }, Graph)
  local ok, message = pcall(fn, self)
  if ok and C.weft_graph_end(p) == 0 then
    self.kernels, self.bytes = tonumber(C.weft_graph_kernels(p)), tonumber(C.weft_graph_bytes(p))
    return self
  end
  if ok then message = ffi.string(C.weft_error()) end
  self:free()
  error(message, 0)
end

---From here on in the capture: clock (one int64 on the device) is added to the counters of draws; rates
---(four float64) take the place of those of AdamW and EMA (see weft.h).
function Graph:bind(clock, rates) A.check(C.weft_graph_bind(self.p, clock and clock.p, rates and rates.p)) end

---Starts all of it; like an operator it returns before it is done.
function Graph:launch()
  if not self.p then A.raise("graph: it was freed") end
  A.check(C.weft_graph_launch(self.p))
end

---Gives its memory back.
function Graph:free()
  if not self.p then return end
  C.weft_graph_free(ffi.gc(self.p, nil))
  self.p = nil
end

return M
