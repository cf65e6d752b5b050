-- autograd: backward, no_grad, hooks, functions with a gradient written in Lua, and checkpointing.
local ffi = require "ffi"
local C = require("weft.core").lib
local A = require "weft.args"
local bounded = require "weft.bounded"
local registry = require "weft.autograd.functions"
local random = require "weft.random"
local tensors = require "weft.tensor"

local M = {}
local functions, new_id, forget = registry.by_id, registry.new_id, registry.forget

local function restore(was, ok, ...)
  C.weft_set_grad_enabled(was)
  if not ok then error((...), 0) end
  return ...
end

---Runs fn(...) without recording.
function M.no_grad(fn, ...)
  return restore(C.weft_set_grad_enabled(false), bounded.call("weft.no_grad", fn, ...))
end
---Runs fn(...) recording, also inside no_grad.
function M.enable_grad(fn, ...)
  return restore(C.weft_set_grad_enabled(true), bounded.call("weft.enable_grad", fn, ...))
end
function M.grad_enabled() return require("weft.core").state.grad_enabled end

local function optional(p)
  if p == nil then return nil end
  return (A.wrap(p))
end

local function run_node(run)
  local id = tonumber(C.weft_run_id(run))
  local node = functions[id]
  local grads = {}
  for j = 1, C.weft_run_node_outputs(run) do grads[j] = optional(C.weft_run_grad(run, j - 1)) end
  local saved = {}
  for i = 1, node.n_saved do saved[i] = optional(C.weft_run_saved(run, i - 1)) end
  local needs, mask = {}, C.weft_run_node_needs(run)
  for i = 1, node.n_in do needs[i] = bit.band(bit.rshift(mask, i - 1), 1ULL) == 1ULL end
  local dx, count = node.backward({ saved = saved, needs = needs }, unpack(grads, 1, C.weft_run_node_outputs(run)))
  if count > node.n_in then
    A.raise("custom function: backward returned %d gradients for %d tensor inputs", count, node.n_in)
  end
  for i = 1, node.n_in do
    if dx[i] ~= nil then
      if not needs[i] then dx[i] = nil
      elseif C.weft_run_give(run, i - 1, A.tensor(dx[i], "custom function", "gradient of input " .. i)) ~= 0 then A.fail() end
    end
  end
end

local function run_hook(run)
  local grad = optional(C.weft_run_grad(run, 0))
  if grad ~= nil then grad:keep() end  -- a hook may hold on to it
  local replaced = functions[tonumber(C.weft_run_id(run))](grad)
  if replaced ~= nil and C.weft_run_give(run, 0, A.tensor(replaced, "hook", "result")) ~= 0 then A.fail() end
end

-- Lua's nodes and hooks run off the tape, each in a scope of its own: what one makes is gone before
-- the next needs memory.
local function drive(run, retain)
  while true do
    local pause = C.weft_run_step(run)
    if pause == C.WEFT_FAILED then  -- where memory ran out, once more with room made
      A.relieve()
      pause = C.weft_run_step(run)
      if pause == C.WEFT_FAILED then A.fail() end
    end
    if pause == C.WEFT_DONE then return end
    local id, scope = tonumber(C.weft_run_id(run)), C.weft_scope_begin()
    if scope == 0 then A.fail() end
    if pause == C.WEFT_NODE then
      run_node(run)
      if not retain then functions[id] = nil end  -- the core refuses a second pass
    else
      run_hook(run)
    end
    C.weft_scope_end(scope)
  end
end

---Gradients of this tensor with respect to every leaf that requires one, added to their `grad`.
---@param t weft.Tensor  one element, unless options.gradient is given
---@param options? table  gradient: d L / d t; retain_graph: keep what was saved for another backward
function M.backward(t, options)
  local o = A.options(options, { gradient = A.none, retain_graph = false }, "backward")
  local roots = ffi.new("weft_tensor *[1]", A.tensor(t, "backward", "t"))
  local grads = ffi.new("weft_tensor *[1]")
  if o.gradient then grads[0] = A.tensor(o.gradient, "backward", "gradient") end
  local run = C.weft_run_new(roots, grads, 1, o.retain_graph)
  if run == nil then A.fail() end
  local id = C.weft_scope_begin()  -- ended below, with all that an error left open inside
  local was = C.weft_set_grad_enabled(false)
  local ok, message = bounded.call("backward", drive, run, o.retain_graph)
  C.weft_set_grad_enabled(was)
  C.weft_run_free(run)
  C.weft_scope_end(id)
  forget()
  if not ok then error(message, 0) end
end

---Calls fn(grad) when t's gradient is known, before it is used; what it returns replaces the gradient.
---@return function remove
function M.register_hook(t, fn)
  local id = new_id(fn)
  A.check(C.weft_add_hook(A.tensor(t, "register_hook", "t"), id))
  return function()
    if functions[id] and t.gen == t.p.gen then A.check(C.weft_remove_hook(t.p, id)) end
    functions[id] = nil
  end
end

---A function with its own gradient. forward(ctx, ...) computes without the tape and may set
---ctx.saved = { tensors }; backward(ctx, dy1, ...) returns a gradient (or nil) for each tensor input,
---in order; ctx.needs[i] says which are wanted.
---@param spec { forward: function, backward: function }
---@return function
function M.custom(spec)
  A.options(spec, { forward = A.required, backward = A.required }, "custom")
  return function(...)
    local inputs = {}
    for i = 1, select("#", ...) do
      local v = select(i, ...)
      if A.is_tensor(v) then inputs[#inputs + 1] = v end
    end
    local ctx = { saved = {} }
    local out = { M.no_grad(spec.forward, ctx, ...) }
    if #out == 0 then A.raise("custom function: forward must return a tensor, got %s", A.typename(out[1])) end
    local function pointers(list, what)
      local p = ffi.new("weft_tensor *[?]", math.max(#list, 1))
      for i, t in ipairs(list) do p[i - 1] = A.tensor(t, "custom function", what .. " " .. i) end
      return p
    end
    for i, y in ipairs(out) do
      for _, x in ipairs(inputs) do
        if x == y then out[i] = y:detach() end
      end
    end
    local saved = ctx.saved
    ctx.saved = nil
    local node = { n_in = #inputs, n_saved = #saved }
    function node.backward(more, ...)
      for k, v in pairs(more) do ctx[k] = v end
      local function count(...) return { ... }, select("#", ...) end
      local results, n = count(spec.backward(ctx, ...))
      ctx.saved = nil
      return results, n
    end
    A.check(C.weft_custom_node(new_id(node), pointers(inputs, "input"), #inputs,
      pointers(out, "output"), #out, pointers(saved, "saved tensor"), #saved))
    return unpack(out)
  end
end

---Runs fn(...) without keeping what its gradient needs; backward runs it again, with the same random
---draws. fn must be a function of its tensor arguments and parameters alone: side effects (queues,
---running averages) belong outside.
---@param fn function  returns one tensor
function M.checkpoint(fn, ...)
  if not M.grad_enabled() then return fn(...) end
  local arguments, count = { ... }, select("#", ...)
  local inputs, places = {}, {}
  for i = 1, count do
    if A.is_tensor(arguments[i]) then
      inputs[#inputs + 1] = arguments[i]
      places[#places + 1] = i
    end
  end
  -- a leaf of its own, so that a gradient is wanted even when only parameters inside fn have one
  local anchor = tensors.create.zeros { requires_grad = true, dtype = "float32" }
  local before = random.snapshot()
  local call = M.custom {
    forward = function(ctx, _, ...)
      ctx.saved = { ... }
      local y = fn(unpack(arguments, 1, count))
      if not A.is_tensor(y) then A.raise("checkpoint: the function must return one tensor, got %s", A.typename(y)) end
      return y
    end,
    backward = function(ctx, dy)
      local again = {}
      for i = 1, count do again[i] = arguments[i] end
      local leaves = {}
      for k, place in ipairs(places) do
        local leaf = ctx.saved[k]:detach()
        if inputs[k].requires_grad then leaf:requires_grad_() end
        again[place], leaves[k] = leaf, leaf
      end
      local after = random.snapshot()
      random.restore(before)
      local ok, y = pcall(M.enable_grad, fn, unpack(again, 1, count))
      random.restore(after)
      if not ok then error(y, 0) end
      if not y.requires_grad then return end
      M.backward(y, { gradient = dy })
      local grads = { nil }
      for k in ipairs(places) do grads[k + 1] = leaves[k].requires_grad and leaves[k].grad or nil end
      return unpack(grads, 1, #places + 1)
    end,
  }
  return (call(anchor, unpack(inputs)))
end

tensors.method("backward", M.backward)
tensors.method("register_hook", M.register_hook)
return M
