-- halves.lua: SwiGLU's two gates, one module here and two in the newer generation of transformers: adapters
-- of the two as one adapter of ours, number for number, and back.
local A = require "weft.args"
local config = require "weft.peft.config"
local create = require("weft.tensor").create
local no_grad = require("weft.autograd").no_grad
local ops = require("weft.ops").functions
local C = require("weft.core").lib

local M = {}

local function same(a, b)
  return table.concat(a.shape, ",") == table.concat(b.shape, ",") and a.dtype == b.dtype
    and C.weft_checksum(a:contiguous().p, 0) == C.weft_checksum(b:contiguous().p, 0)
end

---The part of one of our tensors that belongs to a half: all of A, half the rows of the rest.
function M.of(tail, tensor, half)
  if not half or tail == "lora_A.weight" then return tensor end
  local n = tensor:size(1) / 2
  return no_grad(function() return tensor:detach():narrow(1, (half - 1) * n + 1, n):contiguous() end)
end

local function zeros(like, rows, columns)
  return create.zeros { rows, columns, dtype = like.dtype, device = like.device }
end

-- A and B of both halves as one pair. Halves with one A need no more rank than they have.
local function join_ab(gate, up)
  if gate and up and gate.scaling == up.scaling and same(gate.a, up.a) then
    return gate.a, ops.cat({ gate.b, up.b }, 1), gate.scaling
  elseif gate and up then
    local rows, ranks = gate.b:size(1), { gate.a:size(1), up.a:size(1) }
    local top = ops.cat({ gate.b, zeros(gate.b, rows, ranks[2]) }, 2)
    local bottom = ops.cat({ zeros(up.b, rows, ranks[1]), up.b * (up.scaling / gate.scaling) }, 2)
    return ops.cat({ gate.a, up.a }, 1), ops.cat({ top, bottom }, 1), gate.scaling
  end
  local one = gate or up
  local nothing = one.b * 0
  return one.a, ops.cat(gate and { one.b, nothing } or { nothing, one.b }, 1), one.scaling
end

---One set of our tensors from what a file holds for the two halves.
---@param halves table[]  [1], [2]: tensors by tail, with name (path in the file), or nil
---@param sizes fun(name: string): integer, number, number  rank, alpha, scaling of a module by its name
---@param rslora boolean
---@return table<string, weft.Tensor> tensors, table? size  rank, alpha, scaling
function M.join(halves, sizes, rslora)
  return no_grad(function()
    local out, size, parts = {}, nil, {}
    local tails = {}
    for i = 1, 2 do
      for tail in pairs(halves[i] and halves[i].tensors or {}) do tails[tail] = true end
      local t = halves[i] and halves[i].tensors
      if t and t["lora_A.weight"] and t["lora_B.weight"] then
        local rank, _, scaling = sizes(halves[i].name)
        if rank ~= t["lora_A.weight"]:size(1) then
          A.raise("%s: lora_A is of rank %d, and the settings say %d", halves[i].name, t["lora_A.weight"]:size(1), rank)
        end
        parts[i] = { a = t["lora_A.weight"], b = t["lora_B.weight"], scaling = scaling }
      end
    end
    if parts[1] or parts[2] then
      local a, b, scaling = join_ab(parts[1], parts[2])
      local rank = a:size(1)
      out["lora_A.weight"], out["lora_B.weight"] = a, b:contiguous()
      size = { rank = rank, alpha = scaling * (rslora and math.sqrt(rank) or rank), scaling = scaling }
      assert(math.abs(config.scaling(size.alpha, rank, rslora) - scaling) < 1e-9 * scaling)
    end
    for tail in pairs(tails) do
      if tail ~= "lora_A.weight" and tail ~= "lora_B.weight" then
        local first, second = halves[1] and halves[1].tensors[tail], halves[2] and halves[2].tensors[tail]
        if not (first and second) then
          local there = first and halves[1] or halves[2]
          A.raise("%s: %s is there for one of the gates alone, and they are one module here", there.name, tail)
        end
        if tail == "lora_B.bias" then second = second * (parts[2].scaling / size.scaling) end
        out[tail] = ops.cat({ first, second }, 1)
      end
    end
    return out, size
  end)
end

return M
