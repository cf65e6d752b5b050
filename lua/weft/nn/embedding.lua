-- embedding.lua: rows of a table by id.
local module = require "weft.nn.module"
local initial = require "weft.nn.initial"
local A = require "weft.args"
local ops = require("weft.ops").functions

local Embedding = module.class("Embedding", module.base)

---weight [count, width], standard normal unless init says otherwise.
---@param count integer  ids run from 0 to count - 1
---@param width integer
---@param options? table init (nn.initial.normal(1))
function Embedding:init(count, width, options)
  local o = A.options(options, { init = initial.normal(1) }, "Embedding")
  self.n, self.width = count, width
  self:parameter("weight", { count, width }, o.init)
end

---ids [...] int64 -> [..., width]
function Embedding:forward(ids)
  return (ops.embedding(ids, self.weight))
end

function Embedding:describe() return ("%d x %d"):format(self.n, self.width) end

return Embedding
