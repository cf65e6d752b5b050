-- counts.lua: what the core counts, as plain numbers, for specs that compare before and after.
local ffi = require "ffi"
local weft = require "weft"
local C = require("weft.core").lib
local state = require("weft.core").state
local forget = require("weft.autograd.functions").forget

local M = {}

local index = {}
for i = 0, C.weft_n_ops() - 1 do index[ffi.string(C.weft_op_field(i, "name"))] = i end

---Calls of one operator since the start.
function M.calls(name) return tonumber(C.weft_op_calls((assert(index[name], name)))) end

---How often fn calls each of the named operators.
function M.during(names, fn)
  local before, out = {}, {}
  for _, name in ipairs(names) do before[name] = M.calls(name) end
  fn()
  for _, name in ipairs(names) do out[name] = M.calls(name) - before[name] end
  return out
end

---Bytes that the tape keeps.
function M.tape() return tonumber(C.weft_tape_bytes()) end

---Copies that the dispatcher made.
function M.copies() return tonumber(state.copies) end

---Live bytes, handles, tape nodes, kept bytes and open scopes, after a collection.
function M.alive()
  collectgarbage()
  forget()
  collectgarbage()
  return { live = weft.memory().live, handles = tonumber(state.handles), nodes = tonumber(state.nodes),
    tape = M.tape(), scopes = tonumber(state.scope_depth) }
end

return M
