-- module.lua: Module, the base of everything with parameters. A module's parameters are named by the
-- path of fields that leads to them, exactly as in the checkpoint of the same model.
local A = require "weft.args"
local random = require "weft.random"

local Module = {}
Module.__index = Module
Module.type = "Module"

local function is_module(v)
  return type(v) == "table" and getmetatable(v) ~= nil and rawget(v, "_parameters") ~= nil
end

-- A list module (numbered) holds its children as [1], [2], ...; their names count from 0, as in
-- checkpoints. Other modules hold them by field.
local function children_of(self)
  local list = {}
  if self.numbered then
    for i = 1, #self do
      if not is_module(self[i]) then
        A.raise("%s[%d]: a module is expected, got %s", self.type, i, A.typename(self[i]))
      end
      list[i] = { i - 1, self[i] }
    end
  end
  for _, key in ipairs(self._order) do
    local child = self._children[key]
    if child then list[#list + 1] = { key, child } end
  end
  return list
end

-- Fields of a module: parameters, buffers and children go to their own lists, the rest is plain.
local function newindex(self, key, value)
  local parameters, buffers, children = self._parameters, self._buffers, self._children
  if A.is_tensor(value) then
    if parameters[key] == nil and buffers[key] == nil then self._order[#self._order + 1] = key end
    A.tensor(value, self.type, tostring(key))
    value = value:keep()
    if buffers[key] ~= nil then buffers[key] = value else parameters[key] = value end
  elseif self.numbered and type(key) == "number" then
    if not is_module(value) then A.raise("%s[%d]: a module is expected, got %s", self.type, key, A.typename(value)) end
    if key ~= #self + 1 then A.raise("%s[%s]: the next place is %d", self.type, tostring(key), #self + 1) end
    rawset(self, key, value)
  elseif is_module(value) then
    if children[key] == nil then self._order[#self._order + 1] = key end
    children[key] = value
  elseif value == nil and (parameters[key] ~= nil or buffers[key] ~= nil or children[key] ~= nil) then
    parameters[key], buffers[key], children[key] = nil, nil, nil
    for i, k in ipairs(self._order) do
      if k == key then table.remove(self._order, i) break end
    end
  else
    rawset(self, key, value)
  end
end

local function make_class(name, base)
  local class = setmetatable({ type = name, base = base }, {
    __index = base,
    __call = function(class, ...) return (class.new(...)) end,
  })
  class.__index = function(self, key)
    local v = rawget(self, "_parameters")[key]
    if v ~= nil then return v end
    v = rawget(self, "_children")[key]
    if v ~= nil then return v end
    v = rawget(self, "_buffers")[key]
    if v ~= nil then return v end
    return class[key]
  end
  class.__newindex = newindex
  class.__call = function(self, ...) return self:call(...) end
  class.__tostring = function(self) return (self:tree()) end
  function class.new(...)
    local self = setmetatable({
      _parameters = {}, _buffers = {}, _children = {}, _order = {}, _hooks = {}, _inits = {}, _given = {}, training = true,
    }, class)
    if class.init then class.init(self, ...) end
    return self
  end
  return class
end

local ModuleClass = make_class("Module", Module)

-- --- calling
---Runs forward; hooks see the result (weft.trace uses them).
function Module:call(...)
  local hooks = self._hooks
  if #hooks == 0 then return self:forward(...) end
  local function after(...)
    for _, hook in ipairs(hooks) do hook(self, ...) end
    return ...
  end
  return after(self:forward(...))
end

---Calls fn(module, outputs...) after each forward. Returns a function that takes it off.
function Module:register_forward_hook(fn)
  table.insert(self._hooks, fn)
  return function()
    for i, h in ipairs(self._hooks) do
      if h == fn then table.remove(self._hooks, i) return end
    end
  end
end

---Whether somebody wants the result of each call: it must not be skipped for a pass that does more at once.
function Module:listened() return #self._hooks > 0 or rawget(self, "call") ~= nil end

function Module:forward() A.raise("%s has no forward", self.type) end

-- --- what it holds
---A tensor that is state but no parameter (a queue, a running mean).
function Module:register_buffer(name, tensor)
  if self._buffers[name] == nil then self._order[#self._order + 1] = name end
  self._buffers[name] = tensor:keep()
  return tensor
end

-- Where new parameters go, and whether they are filled.
local making = { device = "cpu", fill = true }

local function making_with(device, fill, fn, ...)
  local before = making
  making = { device = device, fill = fill }
  local function after(ok, ...)
    making = before
    if not ok then error((...), 0) end
    return ...
  end
  return after(pcall(fn, ...))
end

---Runs fn(...); the parameters of modules made inside have shapes and no memory: for counts and plans.
---@param fn function
function Module.on_meta(fn, ...) return making_with("meta", false, fn, ...) end

---Runs fn(...); the parameters of modules made inside are left as memory comes, because a file is about
---to fill them. initialize() fills those that no file gave.
---@param fn function
function Module.unfilled(fn, ...) return making_with(making.device, false, fn, ...) end

---A new parameter that wants a gradient. init(tensor, rng) fills it, now and again in initialize().
---@param name string
---@param shape integer[]
---@param init function  one of nn.initial
function Module:parameter(name, shape, init)
  local spec = { device = making.device }
  for i, n in ipairs(shape) do
    if type(n) ~= "number" or n % 1 ~= 0 or n < 0 then
      A.raise("%s: %s: sizes are whole numbers, got %s", self.type, name, tostring(n))
    end
    spec[i] = n
  end
  local t = require("weft.tensor").create.empty(spec)
  if making.fill then init(t) end
  self[name] = t:requires_grad_()
  rawget(self, "_inits")[name] = init
  return self[name]
end

---Draws every parameter that no file gave anew, keyed by seed and name alone: what else the model
---holds, and in which order it was made, changes nothing.
---@param seed integer
function Module:initialize(seed)
  local key = require("weft.random").hash
  require("weft.autograd").no_grad(function()
    for name, t, module, field in self:named_parameters() do
      local init = module._inits[field]
      if init and not module._given[field] and t.device ~= "meta" then
        local plain = name:gsub("%.base_layer%.", ".")  -- a layer draws the same with an adapter around it
        init(t, { key = key("init/" .. plain, seed), counter = 0ULL })
      end
    end
  end)
  return self
end

---Iterates over (path, module), this one first with the path "".
function Module:named_modules()
  local list, seen = {}, {}
  local function walk(module, path)
    if seen[module] then return end
    seen[module] = true
    list[#list + 1] = { path, module }
    for _, c in ipairs(children_of(module)) do
      walk(c[2], path == "" and tostring(c[1]) or path .. "." .. c[1])
    end
  end
  walk(self, "")
  local i = 0
  return function()
    i = i + 1
    if list[i] then return list[i][1], list[i][2] end
  end
end

local function named(self, kind, every)
  local list, seen = {}, {}
  for path, module in self:named_modules() do
    for _, key in ipairs(module._order) do
      local t = module[kind][key]
      if t and (every or not seen[tostring(t.p)]) then
        seen[tostring(t.p)] = true
        list[#list + 1] = { path == "" and tostring(key) or path .. "." .. key, t, module, key }
      end
    end
  end
  local i = 0
  return function()
    i = i + 1
    if list[i] then return unpack(list[i], 1, 4) end
  end
end

---Iterates over (name, tensor, module, key) of all parameters, each tensor once (tied ones by their first name).
function Module:named_parameters() return named(self, "_parameters") end
function Module:named_buffers() return named(self, "_buffers") end

---All parameters, in order.
function Module:parameters()
  local list = {}
  for _, t in self:named_parameters() do list[#list + 1] = t end
  return list
end

---Module at a path such as "encoder.layer.3", or nil.
function Module:get(path)
  local at = self
  for key in path:gmatch "[^.]+" do
    if not is_module(at) then return nil end
    local n = at.numbered and tonumber(key)
    at = n and rawget(at, n + 1) or at._children[key]
    if at == nil then return nil end
  end
  return at
end

---Replaces the module at a path.
function Module:set(path, module)
  local above, key = path:match "^(.*)%.([^.]+)$"
  key = key or path
  local parent = self
  if above then parent = self:get(above) end
  if not parent then A.raise("%s: there is no module %s", self.type, path) end
  if not is_module(module) then A.raise("%s: %s: a module is expected, got %s", self.type, path, A.typename(module)) end
  if parent.numbered and tonumber(key) then
    rawset(parent, tonumber(key) + 1, module)
  else
    parent[key] = module
  end
end

---The children as a list of { name, module }, in order.
function Module:children() return children_of(self) end

---Number of elements of the parameters; with trainable = true only of those that train.
function Module:count(trainable)
  local n = 0
  for _, t in self:named_parameters() do
    if not trainable or t.requires_grad then n = n + t:numel() end
  end
  return n
end

-- --- switches
local function each(self, fn)
  for path, module in self:named_modules() do fn(module, path) end
  return self
end

---Training behaviour (dropout draws) on or off, for all modules inside.
function Module:train(on)
  return each(self, function(m) rawset(m, "training", on ~= false) end)
end
function Module:eval() return self:train(false) end

---Calls fn(module, path) on every module inside.
function Module:apply(fn) return each(self, fn) end

---Parameters stop (freeze) or start (unfreeze) wanting gradients.
function Module:freeze()
  for _, t in self:named_parameters() do t:requires_grad_(false) end
  return self
end
function Module:unfreeze()
  for _, t in self:named_parameters() do t:requires_grad_(true) end
  return self
end

function Module:zero_grad()
  for _, t in self:named_parameters() do
    if t.requires_grad then t:zero_grad() end
  end
  return self
end

---Converts or moves every parameter and buffer: model:to "float64". A class with `wide = true` keeps
---its dtype where a 16-bit one is asked for; buffers that it lists in `host_buffers` stay on the CPU.
function Module:to(target)
  local options = target
  if type(target) == "string" then
    local is_dtype = target:find "^[bf]?float%d+$" or target:find "^u?int%d+$" or target == "bool"
    options = is_dtype and { dtype = target } or { device = target }
  end
  local integral, moved = { device = options.device }, {}
  local narrow = options.dtype == "bfloat16" or options.dtype == "float16"
  each(self, function(m)
    for _, kind in ipairs { "_parameters", "_buffers" } do
      for key, t in pairs(m[kind]) do
        local id = tostring(t.p)
        local y = moved[id]
        if not y and m.host_buffers and m.host_buffers[key] then moved[id], y = t, t end
        if not y then
          y = t:detach():to(t.dtype:find "float" and not (narrow and m.wide) and options or integral)
          -- what stays as it is keeps its handle, which optimizers hold
          y = y.dtype == t.dtype and y.device == t.device and t or y:keep()
          if y ~= t and t.requires_grad then y:requires_grad_() end
          moved[id] = y
        end
        m[kind][key] = y
      end
    end
  end)
  return self
end

-- --- errors
---What an error calls this module: its path where it is known, and what it is.
function Module:where()
  local name = self.type .. (self.describe and "(" .. self:describe() .. ")" or "")
  return self._path and self._path ~= "" and self._path .. ": " .. name or name
end

---Refuses anything but a tensor whose last dim is n.
function Module:expect(x, n, name)
  local v = A.is_tensor(x) and x.p ~= nil and x.gen == x.p.gen and x.p.v
  if not v then v = A.tensor(x, self:where(), name or "x").v end
  if v.ndim == 0 or v.shape[v.ndim - 1] ~= n then
    A.raise("%s: %s [%s]: a last dim of %d is expected", self:where(), name or "x", table.concat(x.shape, ","), n)
  end
end

-- --- random draws
---The rng of a purpose of this module, keyed by its path: nobody else's draws shift it.
function Module:rng(use)
  return random.named((self._path or self.type) .. "/" .. use)
end

---Tells every module its path, which names its random draws. The trainer calls it on the model.
function Module:assign_paths()
  return each(self, function(m, path) rawset(m, "_path", path) end)
end

---A copy with tensors of its own: tied parameters stay tied, hooks stay behind.
function Module:copy()
  local copies = {}
  local function tensor_of(t)
    local id = tostring(t.p)
    if not copies[id] then
      copies[id] = require("weft.autograd").no_grad(function() return t:detach():clone():keep() end)
      if t.requires_grad then copies[id]:requires_grad_() end
    end
    return copies[id]
  end
  local seen = {}
  local function plain(v)
    if type(v) ~= "table" then return v end
    local out = {}
    for k, x in pairs(v) do out[k] = x end
    return out
  end
  local function copy_of(m)
    if seen[m] then return seen[m] end
    local new = {}
    seen[m] = new
    for k, v in pairs(m) do
      if type(k) == "number" and is_module(v) then new[k] = copy_of(v) else new[k] = plain(v) end
    end
    new._hooks = {}
    for k, t in pairs(m._parameters) do new._parameters[k] = tensor_of(t) end
    for k, t in pairs(m._buffers) do new._buffers[k] = tensor_of(t) end
    for k, child in pairs(m._children) do new._children[k] = copy_of(child) end
    return setmetatable(new, getmetatable(m))
  end
  return copy_of(self)
end

-- --- state
---All parameters and buffers by name (tied parameters once).
---@return table<string, weft.Tensor>
function Module:state_dict()
  local out = {}
  for name, t in self:named_parameters() do out[name] = t end
  for name, t in self:named_buffers() do out[name] = t end
  return out
end

---Copies tensors by name. Strict by default: a missing, extra or misshapen tensor is one error that
---names it, and nothing is changed.
---@param state table<string, weft.Tensor>
---@param options? table strict
function Module:load_state_dict(state, options)
  local o = A.options(options, { strict = true }, "load_state_dict")
  local mine, names, problems = self:state_dict(), {}, {}
  for name in pairs(mine) do names[#names + 1] = name end
  table.sort(names)
  local sorted = {}
  for name in pairs(state) do sorted[#sorted + 1] = name end
  table.sort(sorted)
  for _, name in ipairs(sorted) do
    local t = mine[name]
    if not t then
      if o.strict then problems[#problems + 1] = ("extra %s%s"):format(name, A.suggest(name, names):gsub("; known.*", "")) end
    else
      local a, b = table.concat(t.shape, ","), table.concat(state[name].shape, ",")
      if a ~= b then problems[#problems + 1] = ("%s is [%s], expected [%s]"):format(name, b, a) end
    end
  end
  for _, name in ipairs(names) do
    if state[name] == nil and o.strict then problems[#problems + 1] = "missing " .. name end
  end
  if #problems > 0 then
    local shown = table.concat(problems, "\n  ", 1, math.min(#problems, 8))
    A.raise("load_state_dict: %s: %d tensors do not fit:\n  %s%s", self.type, #problems, shown, #problems > 8 and "\n  ..." or "")
  end
  require("weft.autograd").no_grad(function()
    for name, _, module, key in self:named_parameters() do
      if state[name] then module._given[key] = true end
    end
    for _, name in ipairs(names) do
      if state[name] then mine[name]:copy_(state[name]) end
    end
  end)
  return self
end

-- --- printing
local function commas(n)
  local s = tostring(n)
  repeat
    local k
    s, k = s:gsub("^(%d+)(%d%d%d)", "%1,%2")
  until k == 0
  return s
end

---The module and what is inside as a tree with shapes, counts and what is frozen.
function Module:tree()
  local lines = {}
  local function walk(module, name, indent)
    local extra = module.describe and module:describe() or ""
    local total, trainable = module:count(), module:count(true)
    local note = ""
    if total > 0 and trainable == 0 then note = "  frozen"
    elseif trainable < total then note = ("  %s trainable"):format(commas(trainable)) end
    lines[#lines + 1] = ("%s%s%s%s%s%s"):format(indent, name ~= "" and name .. ": " or "", module.type,
      extra ~= "" and "(" .. extra .. ")" or "", total > 0 and "  " .. commas(total) or "", note)
    -- runs of children that print alike are shown once
    local i, order = 1, children_of(module)
    local function shape_of(m)
      local parts = { m.describe and m:describe() or "" }
      for n, t in m:named_parameters() do parts[#parts + 1] = n .. table.concat(t.shape, ",") .. tostring(t.requires_grad) end
      return m.type .. table.concat(parts, ";")
    end
    while i <= #order do
      local key, child, last = order[i][1], order[i][2], i
      if type(key) == "number" then
        local same = shape_of(child)
        while last < #order and type(order[last + 1][1]) == "number" and shape_of(order[last + 1][2]) == same do
          last = last + 1
        end
      end
      local label = last > i and ("%s..%s"):format(key, order[last][1]) or tostring(key)
      walk(child, label, indent .. "  ")
      i = last + 1
    end
    for _, key in ipairs(module._order) do
      local t = module._parameters[key]
      if t and #order > 0 then
        lines[#lines + 1] = ("%s  %s [%s]%s"):format(indent, key, table.concat(t.shape, ","), t.requires_grad and "" or "  frozen")
      end
    end
  end
  walk(self, "", "")
  return table.concat(lines, "\n")
end

return { Module = ModuleClass, class = make_class, is_module = is_module, base = Module, commas = commas }
