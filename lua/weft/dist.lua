-- dist.lua: groups of ranks: programs that compute together, each on a device of its own.
local A = require "weft.args"
local C = require("weft.core").lib

local M = {}

local Group = {}
Group.__index = Group
local reductions = { sum = C.WEFT_SUM, mean = C.WEFT_MEAN, max = C.WEFT_MAX }

local function whole(v, name)
  if type(v) ~= "number" or v % 1 ~= 0 then A.integer(v, "dist.join", name) end
  return v
end

---Joins a group of ranks and waits until all are there. One rank alone needs no options: its operations
---leave every tensor as it is and start nothing, so a program for many ranks runs as it stands. Several
---ranks are processes with a GPU each, which meet at a file that all of them see and that is not there
---before. Ranks count from 0, as in MPI and NCCL. Every rank calls the same operations in the same order,
---on tensors of one shape and dtype; gradients do not pass between ranks.
---@param options? table  provider ("self" for one rank, "nccl" for GPUs), device ("cuda"; of nccl), rank (0),
---  size (1), meeting (a path), timeout (seconds to wait for rank 0: 300)
---@return table group  with rank, size, provider
---
---    local group = weft.dist.join()
---    group:all_reduce_(weft.ones { 3 }, "mean")
function M.join(options)
  local o = A.options(options, { provider = A.none, device = "cuda", rank = 0, size = 1, meeting = A.none, timeout = 300 }, "dist.join")
  local rank, size = whole(o.rank, "rank"), whole(o.size, "size")
  local provider = o.provider or (size > 1 and "nccl" or "self")
  A.number(o.timeout, "dist.join", "timeout")
  for _, name in ipairs { "provider", "meeting" } do
    if o[name] ~= nil and type(o[name]) ~= "string" then
      A.raise("dist.join: %s: a string is expected, got %s", name, A.typename(o[name]))
    end
  end
  local p = C.weft_group_join(provider, A.device(o.device, "dist.join"), rank, size, o.meeting, o.timeout)
  if p == nil then A.fail "dist.join" end
  -- no finalizer: leaving may wait for other ranks, which a collector must not
  return setmetatable({ p = p, rank = rank, size = size, provider = provider }, Group)
end

local function handle(group, op)
  if group.p == nil then A.raise("%s: the group was left", op) end
  return group.p
end

local function reduction_of(name, op)
  return reductions[name or "sum"] or A.choice(name, reductions, op, "reduction")
end

---Each element becomes the sum, mean or max of that element over all ranks. The tensor is written in place.
---@param t weft.Tensor     float32, float64, bfloat16, float16; int32, int64, uint8 but for mean
---@param reduction? string  "sum", "mean" or "max"
---@return weft.Tensor t
function Group:all_reduce_(t, reduction)
  local p = handle(self, "all_reduce_")
  A.run(C.weft_all_reduce_, p, A.tensor(t, "all_reduce_", "t"), reduction_of(reduction, "all_reduce_"))
  return t
end

---The tensors of all ranks, one after another along the first dim.
---@param t weft.Tensor  [n, ...]; a number counts as [1]
---@return weft.Tensor  [size * n, ...], a copy also where there is one rank
function Group:all_gather(t)
  local p = handle(self, "all_gather")
  return (A.wrap(A.make(nil, C.weft_all_gather, p, A.tensor(t, "all_gather", "t"))))
end

---Reduces over the ranks, and leaves each with its part of the first dim: rank 0 with the first.
---@param t weft.Tensor  [size * n, ...]
---@param reduction? string  "sum", "mean" or "max"
---@return weft.Tensor  [n, ...], a copy also where there is one rank
function Group:reduce_scatter(t, reduction)
  local p = handle(self, "reduce_scatter")
  local how = reduction_of(reduction, "reduce_scatter")
  return (A.wrap(A.make(nil, C.weft_reduce_scatter, p, A.tensor(t, "reduce_scatter", "t"), how)))
end

---Each rank's tensor becomes root's. The tensor is written in place.
---@param t weft.Tensor
---@param root? integer  a rank, from 0
---@return weft.Tensor t
function Group:broadcast_(t, root)
  local p = handle(self, "broadcast_")
  if root ~= nil and (type(root) ~= "number" or root % 1 ~= 0) then A.integer(root, "broadcast_", "root") end
  A.run(C.weft_broadcast_, p, A.tensor(t, "broadcast_", "t"), root or 0)
  return t
end

---Waits until all ranks are here and their devices have done all that they were given.
function Group:barrier() A.check(C.weft_barrier(handle(self, "barrier"))) end

---Leaves the group; every rank does, once its operations are done. A group that is not left lives as long
---as the program.
function Group:leave()
  C.weft_group_leave(handle(self, "leave"))
  self.p = nil
end

function Group:__tostring()
  return ("rank %d of %d (%s)%s"):format(self.rank, self.size, self.provider, self.p == nil and ", left" or "")
end

return M
