-- generate.lua: reads core/ops.def and writes what follows from it: C prototypes and their bodies,
-- attribute names, the Lua wrappers, type stubs. Run by the build: luajit generate.lua ops.def OUT
local source, out = arg[1], arg[2]

local function read(path)
  local f = assert(io.open(path, "rb")); local s = f:read "*a"; f:close(); return s
end
local function write(path, text)
  local f = io.open(path, "rb")
  if f then
    local old = f:read "*a"; f:close()
    if old == text then return end
  end
  f = assert(io.open(path, "wb")); f:write(text); f:close()
end

-- One row's text between its outer parentheses, cut at top-level commas.
local function fields(body)
  local list, depth, start, quoted = {}, 0, 1, false
  for i = 1, #body do
    local c = body:sub(i, i)
    if c == '"' then quoted = not quoted
    elseif not quoted then
      if c == "(" then depth = depth + 1
      elseif c == ")" then depth = depth - 1
      elseif c == "," and depth == 0 then
        list[#list + 1] = body:sub(start, i - 1); start = i + 1
      end
    end
  end
  list[#list + 1] = body:sub(start)
  for i, s in ipairs(list) do
    s = s:match "^%s*(.-)%s*$"
    list[i] = s:match '^"(.*)"$' or s
  end
  return list
end

local ops = {}
for line in read(source):gmatch "[^\n]+" do
  local body = line:match "^OP(%b())"
  if body then
    local f = fields(body:sub(2, -2))
    assert(#f == 11, "ops.def: a row wants 11 fields: " .. line)
    local op = { name = f[1], family = f[2], kind = f[3], dtypes = f[7], doc = f[11], inputs = {}, outputs = {}, attrs = {} }
    for word in f[4]:gmatch "%S+" do
      local name, class = word:match "^([%w_]+)/?%d?[?.]*:(%w+)$"
      op.inputs[#op.inputs + 1] = { name = name or word:match "^[%w_]+", optional = word:find("?", 1, true) ~= nil,
        variadic = word:find("...", 1, true) ~= nil, class = class }
    end
    for word in f[5]:gmatch "%S+" do
      op.outputs[#op.outputs + 1] = word
      if word:sub(1, 1) ~= "_" then op.visible = (op.visible or 0) + 1 end
    end
    op.visible = op.visible or 0
    local i, d = 0, 0
    for word in f[6]:gmatch "%S+" do
      local name, kind, default = word:match "^([%w_]+):([%w_]+%b())=?(.*)$"
      if not name then name, kind, default = word:match "^([%w_]+):([%w_]+)=?(.*)$" end
      local a = { name = name, type = kind:match "^%w+", has_default = word:find("=", 1, true) ~= nil, default = default }
      if a.type == "enum" then
        a.values = {}
        for v in kind:match("%((.*)%)"):gmatch "[%w_]+" do a.values[#a.values + 1] = v end
      end
      if a.type == "float" then a.slot = "f[" .. d .. "]"; d = d + 1
      elseif a.type == "shape" or a.type == "dims" or a.type == "ints" then a.slot = "list"
      elseif a.type == "rng" then a.slot = "rng"
      else a.slot = "i[" .. i .. "]"; i = i + 1 end
      op.attrs[#op.attrs + 1] = a
    end
    assert(i <= 12 and d <= 8, op.name .. ": too many attributes")
    op.public = not op.name:find "_backward$"
    ops[#ops + 1] = op
  end
end

-- attribute names
do
  local t = { "// Generated from ops.def.\n" }
  for _, op in ipairs(ops) do
    for _, a in ipairs(op.attrs) do
      if a.slot ~= "list" and a.slot ~= "rng" then t[#t + 1] = ("#define AT_%s_%s %s\n"):format(op.name, a.name, a.slot) end
    end
  end
  write(out .. "/ops_attrs.h", table.concat(t))
end

-- C prototypes and bodies
local header, body = { "// Generated from ops.def: one function an operator.\n" }, {
  '// Generated from ops.def.\n#include "core.h"\n#include <string.h>\n' }
for _, op in ipairs(ops) do
  local params, set = {}, {}
  local variadic
  for _, x in ipairs(op.inputs) do
    if x.variadic then
      params[#params + 1] = "const weft_tensor *const *" .. x.name; params[#params + 1] = "int n_" .. x.name; variadic = x.name
    else params[#params + 1] = "const weft_tensor *" .. x.name end
  end
  for _, a in ipairs(op.attrs) do
    if a.slot == "list" then
      params[#params + 1] = "const int64_t *" .. a.name; params[#params + 1] = "int n_" .. a.name
      set[#set + 1] = ('    if (n_%s > WEFT_LIST) return %s;\n    at.n_list = n_%s;\n    for (int k = 0; k < n_%s; k++) at.list[k] = %s[k];\n')
        :format(a.name, "FAIL(weft_fail(WEFT_EINVAL, \"" .. op.name .. ": " .. a.name .. ": more than 16 entries\"))", a.name, a.name, a.name)
    elseif a.slot == "rng" then
      params[#params + 1] = "uint64_t rng_key"; params[#params + 1] = "uint64_t rng_counter"
      set[#set + 1] = "    at.rng_key = rng_key; at.rng_counter = rng_counter;\n"
    else
      params[#params + 1] = (a.type == "float" and "double " or "int64_t ") .. a.name
      set[#set + 1] = ("    at.%s = %s;\n"):format(a.slot, a.name)
    end
  end
  local ret, fail
  if op.visible == 1 then ret, fail = "weft_tensor *", "NULL"
  else
    ret, fail = "weft_status ", "code"
    if op.visible > 1 then params[#params + 1] = "weft_tensor **out" end
  end
  local proto = ("%sweft_%s(%s)"):format(ret, op.name, #params > 0 and table.concat(params, ", ") or "void")
  op.proto = proto
  header[#header + 1] = ("// %s\n%s;\n"):format(op.doc, proto)
  if op.kind ~= "COMPOSITE" then
    local b = { proto, " {\n    weft_attrs at;\n    memset(&at, 0, sizeof at);\n" }
    for _, s in ipairs(set) do
      b[#b + 1] = s:gsub("FAIL(%b())", function(e) return fail == "NULL" and "(" .. e:sub(2, -2) .. ", NULL)" or e:sub(2, -2) end)
    end
    local ins, n
    if #op.inputs == 0 then ins, n = "NULL", "0"
    elseif variadic and #op.inputs == 1 then ins, n = variadic, "n_" .. variadic
    elseif variadic then
      -- fixed inputs first, then any number
      local fixed = #op.inputs - 1
      b[#b + 1] = ("    const weft_tensor **in = weft_pool_alloc((int64_t)sizeof *in * (n_%s + %d));\n    if (!in) return %s;\n")
        :format(variadic, fixed, fail == "NULL" and "NULL" or "WEFT_ENOMEM")
      for k = 1, fixed do b[#b + 1] = ("    in[%d] = %s;\n"):format(k - 1, op.inputs[k].name) end
      b[#b + 1] = ("    for (int k = 0; k < n_%s; k++) in[%d + k] = %s[k];\n"):format(variadic, fixed, variadic)
      b[#b + 1] = ("    weft_status code = weft_dispatch(OP_%s, in, n_%s + %d, &at, %s);\n"):format(op.name, variadic, fixed, op.visible == 0 and "NULL" or "out")
      b[#b + 1] = ("    weft_pool_free(in, (int64_t)sizeof *in * (n_%s + %d));\n    return code;\n}\n"):format(variadic, fixed)
      assert(op.visible ~= 1, op.name .. ": fixed inputs before any number of them want no single output")
    else
      local names = {}
      for k, x in ipairs(op.inputs) do names[k] = x.name end
      b[#b + 1] = ("    const weft_tensor *in[%d] = {%s};\n"):format(#names, table.concat(names, ", "))
      ins, n = "in", tostring(#names)
    end
    if ins then
      if op.visible == 1 then
        b[#b + 1] = ("    weft_tensor *result = NULL;\n    return weft_dispatch(OP_%s, %s, %s, &at, &result) == WEFT_OK ? result : NULL;\n}\n"):format(op.name, ins, n)
      else
        b[#b + 1] = ("    return weft_dispatch(OP_%s, %s, %s, &at, %s);\n}\n"):format(op.name, ins, n, op.visible == 0 and "NULL" or "out")
      end
    end
    body[#body + 1] = table.concat(b)
  end
end
write(out .. "/weft_ops.h", table.concat(header))
write(out .. "/ops_api.c", table.concat(body))

-- Lua wrappers: straight-line code, one function an operator
local L = { [[
-- Generated from ops.def: one straight-line wrapper an operator, their signatures and one-line docs.
local ffi = require "ffi"
local C = require("weft.core").lib
local A = require "weft.args"
local wrap, fail, relieve, tensor, outs = A.wrap, A.fail, A.relieve, A.tensor, A.outs
local Tensor, istype = A.Tensor, ffi.istype
local M, signatures, docs = {}, {}, {}
]] }
local function lua_default(a)
  if a.type == "rng" or a.type == "dims" then return "nil" end
  if a.type == "bool" then return a.default end
  if a.type == "enum" or a.type == "dtype" or a.type == "device" then return '"' .. a.default .. '"' end
  if a.type == "dim" then
    local v = tonumber(a.default); return tostring(v >= 0 and v + 1 or v)
  end
  if a.default == "inf" then return "math.huge" elseif a.default == "-inf" then return "-math.huge" end
  return a.default
end
for _, op in ipairs(ops) do
  if op.public then
    local params, call, pre, sig = {}, {}, {}, {}
    local q = ("%q"):format(op.name)
    for _, x in ipairs(op.inputs) do
      params[#params + 1] = x.name
      sig[#sig + 1] = x.variadic and "{" .. x.name .. "}" or x.optional and "[" .. x.name .. "]" or x.name
      if x.variadic then
        pre[#pre + 1] = ("  local p_%s, n_%s = A.tensors(%s, %s, %q)\n"):format(x.name, x.name, x.name, q, x.name)
        call[#call + 1] = "p_" .. x.name; call[#call + 1] = "n_" .. x.name
      elseif x.optional then
        pre[#pre + 1] = ("  local p_%s\n  if %s ~= nil then p_%s = tensor(%s, %s, %q) end\n"):format(x.name, x.name, x.name, x.name, q, x.name)
        call[#call + 1] = "p_" .. x.name
      else
        pre[#pre + 1] = ("  local p_%s\n  if istype(Tensor, %s) and %s.gen == %s.p.gen then p_%s = %s.p else p_%s = tensor(%s, %s, %q) end\n")
          :format(x.name, x.name, x.name, x.name, x.name, x.name, x.name, x.name, q, x.name)
        call[#call + 1] = "p_" .. x.name
      end
    end
    for _, a in ipairs(op.attrs) do
      local n = a.name
      params[#params + 1] = n
      local def = a.has_default and lua_default(a)
      sig[#sig + 1] = a.has_default and (n .. " = " .. def) or n
      if a.type == "rng" then
        pre[#pre + 1] = ("  local rng_key, rng_counter = A.rng(%s, %s)\n"):format(n, q)
        call[#call + 1] = "rng_key"; call[#call + 1] = "rng_counter"
      elseif a.slot == "list" then
        pre[#pre + 1] = ("  local l_%s, n_%s = A.%s(%s, %s, %q)\n"):format(n, n, a.type, n, q, n)
        call[#call + 1] = "l_" .. n; call[#call + 1] = "n_" .. n
      else
        if a.has_default and a.type ~= "bool" then pre[#pre + 1] = ("  if %s == nil then %s = %s end\n"):format(n, n, def) end
        if a.type == "bool" then
          if a.has_default and a.default == "true" then pre[#pre + 1] = ("  if %s == nil then %s = true end\n"):format(n, n) end
          call[#call + 1] = ("%s and 1 or 0"):format(n)
        elseif a.type == "float" then
          pre[#pre + 1] = ("  if type(%s) ~= \"number\" then A.number(%s, %s, %q) end\n"):format(n, n, q, n)
          call[#call + 1] = n
        elseif a.type == "int" then
          pre[#pre + 1] = ("  if type(%s) ~= \"number\" or %s %% 1 ~= 0 then A.integer(%s, %s, %q) end\n"):format(n, n, n, q, n)
          call[#call + 1] = n
        elseif a.type == "dim" or a.type == "index" then
          pre[#pre + 1] = ("  if type(%s) ~= \"number\" or %s %% 1 ~= 0 or %s == 0 then A.position(%s, %s, %q) end\n"):format(n, n, n, n, q, n)
          call[#call + 1] = ("%s > 0 and %s - 1 or %s"):format(n, n, n)
        elseif a.type == "dtype" then call[#call + 1] = ("A.dtype(%s, %s)"):format(n, q)
        elseif a.type == "device" then call[#call + 1] = ("A.device(%s, %s)"):format(n, q)
        elseif a.type == "enum" then
          local map = {}
          for i, v in ipairs(a.values) do map[#map + 1] = ("%s = %d"):format(v, i - 1) end
          L[#L + 1] = ("local E_%s_%s = { %s }\n"):format(op.name, n, table.concat(map, ", "))
          call[#call + 1] = ("E_%s_%s[%s] or A.choice(%s, E_%s_%s, %s, %q)"):format(op.name, n, n, n, op.name, n, q, n)
        end
      end
    end
    local b = { ("function M.%s(%s)\n"):format(op.name, table.concat(params, ", ")), table.concat(pre) }
    if op.visible == 1 then
      b[#b + 1] = ("  local y = C.weft_%s(%s)\n  if y == nil then\n    relieve()\n    y = C.weft_%s(%s)\n    if y == nil then fail() end\n  end\n"):format(op.name, table.concat(call, ", "), op.name, table.concat(call, ", "))
      b[#b + 1] = "  return (wrap(y))\nend\n"
    elseif op.visible == 0 then
      b[#b + 1] = ("  if C.weft_%s(%s) ~= 0 then fail() end\nend\n"):format(op.name, table.concat(call, ", "))
    else
      call[#call + 1] = "outs"
      b[#b + 1] = ("  if C.weft_%s(%s) ~= 0 then\n    relieve()\n    if C.weft_%s(%s) ~= 0 then fail() end\n  end\n"):format(op.name, table.concat(call, ", "), op.name, table.concat(call, ", "))
      local r = {}
      for k = 1, op.visible do b[#b + 1] = ("  local r%d = outs[%d]\n"):format(k, k - 1); r[k] = ("wrap(r%d)"):format(k) end
      b[#b + 1] = "  return " .. table.concat(r, ", ") .. "\nend\n"
    end
    b[#b + 1] = ("signatures.%s = %q\ndocs.%s = %q\n"):format(op.name, ("%s(%s)"):format(op.name, table.concat(sig, ", ")), op.name, op.doc)
    L[#L + 1] = table.concat(b)
  end
end
L[#L + 1] = "return { functions = M, signatures = signatures, docs = docs }\n"
write(out .. "/lua/weft/ops.lua", table.concat(L))

-- LuaCATS stubs for editors
local S = { "---@meta\n-- Generated from ops.def.\n\n---@class weft.Tensor\n\n---@class weft\nlocal weft = {}\n" }
local cats = { float = "number", int = "integer", bool = "boolean", dim = "integer", index = "integer", dtype = "string", device = "string",
  enum = "string", shape = "integer[]", dims = "integer|integer[]", ints = "integer[]", rng = "table" }
for _, op in ipairs(ops) do
  if op.public then
    local names = {}
    S[#S + 1] = "\n---" .. op.doc .. "\n"
    for _, x in ipairs(op.inputs) do
      names[#names + 1] = x.name
      S[#S + 1] = ("---@param %s%s weft.Tensor%s\n"):format(x.name, x.optional and "?" or "", x.variadic and "[]" or "")
    end
    for _, a in ipairs(op.attrs) do
      names[#names + 1] = a.name
      S[#S + 1] = ("---@param %s%s %s\n"):format(a.name, a.has_default and "?" or "", cats[a.type])
    end
    for k = 1, op.visible do S[#S + 1] = ("---@return weft.Tensor %s\n"):format(op.outputs[k]) end
    S[#S + 1] = ("function weft.%s(%s) end\n"):format(op.name, table.concat(names, ", "))
  end
end
S[#S + 1] = "\nreturn weft\n"
write(out .. "/lua/weft/ops.meta.lua", table.concat(S))
