-- inspect.lua: what safetensors files hold: a tree of names with shapes, dtypes and counts.
local M = {
  summary = "what a safetensors file, model or adapter directory holds",
  usage = "FILE.safetensors|INDEX.json|DIR ... [--stats] [--all] | A B",
  about = "Layers that look alike are shown once, as [0..11]. Counts are elements. Of two, what differs: names, shapes, "
    .. "values, and settings in the json files beside them. Of an adapter also its settings, whose names it uses and what it trains; of "
    .. "shards which file holds what, and where the index is wrong (exit code 1).",
  options = {
    { "stats", "min, mean, max and NaN count of each tensor (reads all of the file)" },
    { "all", "every layer, also those that look alike" },
  },
  examples = { "weft inspect model.safetensors", "weft inspect runs/quickstart/latest/adapter --stats",
    "weft inspect my-adapter their-adapter" },
}

local function commas(n)
  local text = ("%d"):format(n):reverse():gsub("(%d%d%d)", "%1,"):reverse()
  return (text:gsub("^,", ""))
end

local function size(bytes)
  local units = { "B", "KiB", "MiB", "GiB", "TiB" }
  local i = 1
  while bytes >= 1024 and i < #units do bytes, i = bytes / 1024, i + 1 end
  return (i == 1 and "%d %s" or "%.1f %s"):format(bytes, units[i])
end

-- A tree of dotted names. A node has children in order, or an info (a tensor).
local function node() return { children = {}, by_name = {}, count = 0 } end

local function numel(shape)
  local n = 1
  for _, s in ipairs(shape) do n = n * s end
  return n
end

local function plant(root, name, info)
  local at = root
  at.count = at.count + info.numel
  for part in name:gmatch "[^.]+" do
    local child = at.by_name[part]
    if not child then
      child = node()
      child.name = part
      at.by_name[part] = child
      at.children[#at.children + 1] = child
    end
    at = child
    at.count = at.count + info.numel
  end
  at.info = info
end

-- Two nodes look alike when this text of theirs is equal.
local function signature(n)
  if n.signature then return n.signature end
  local parts = { n.info and n.info.dtype .. table.concat(n.info.shape, ",") or "" }
  for _, child in ipairs(n.children) do
    parts[#parts + 1] = child.name .. "(" .. signature(child) .. ")"
  end
  n.signature = table.concat(parts, ";")
  return n.signature
end

local function by_number(a, b)
  local x, y = tonumber(a.name), tonumber(b.name)
  if x and y then return x < y end
  if (x == nil) ~= (y == nil) then return x ~= nil end
  return a.name < b.name
end

local function sort(n)
  table.sort(n.children, by_number)
  for _, child in ipairs(n.children) do sort(child) end
end

local function describe(info)
  local text = ("%s [%s]"):format(info.dtype, table.concat(info.shape, ","))
  return info.stats and text .. "  " .. info.stats or text
end

local function show(n, indent, out, all)
  local i = 1
  while i <= #n.children do
    local child = n.children[i]
    local last = i
    if not all and tonumber(child.name) then
      while n.children[last + 1] and tonumber(n.children[last + 1].name)
        and signature(n.children[last + 1]) == signature(child) do
        last = last + 1
      end
    end
    local label = child.name
    if last > i then label = ("[%s..%s]"):format(child.name, n.children[last].name) end
    -- a chain of single names goes on one line
    while #child.children == 1 and not child.info do
      child = child.children[1]
      label = label .. "." .. child.name
    end
    local right = child.info and describe(child.info) or ""
    if #child.children > 0 then
      if right ~= "" then right = right .. "  " end
      right = right .. (last > i and ("%d times %s"):format(last - i + 1, commas(child.count)) or commas(child.count))
    elseif last > i then
      right = right .. ("  %d times"):format(last - i + 1)
    end
    out(("%s%s %s\n"):format(indent, label .. (" "):rep(math.max(1, 44 - #indent - #label)), right))
    show(child, indent .. "  ", out, all)
    i = last + 1
  end
end

local function statistics(weft, tensor)
  return weft.scope(function()
    local t = tensor:to "float64"
    if t:numel() == 0 then return "empty" end
    local data, n = t:contiguous():data(), t:numel()
    local low, high, sum, nans = math.huge, -math.huge, 0, 0
    for i = 0, n - 1 do
      local v = data[i]
      if v ~= v then
        nans = nans + 1
      else
        sum = sum + v
        if v < low then low = v end
        if v > high then high = v end
      end
    end
    if nans == n then return ("%d NaN"):format(nans) end
    return ("min %.4g  mean %.4g  max %.4g%s"):format(low, sum / (n - nans), high,
      nans > 0 and ("  %d NaN"):format(nans) or "")
  end)
end

local function put_tree(infos, names, args)
  local root = node()
  for _, name in ipairs(names) do plant(root, name, infos[name]) end
  sort(root)
  show(root, "  ", io.write, args.all or args.stats)
end

-- A model in shards, by its index: which file holds what, and the tree of all.
local function sharded(path, args)
  local shards, infos, wrong = require("weft.cli.inspect_about").shards(path, numel)
  local names, elements, bytes = {}, 0, 0
  for name, info in pairs(infos) do
    names[#names + 1] = name
    elements, bytes = elements + info.numel, bytes + info.nbytes
  end
  table.sort(names)
  io.write(("%s\n  %d tensors in %d files, %s elements, %s\n"):format(path, #names, #shards, commas(elements), size(bytes)))
  for _, shard in ipairs(shards) do
    io.write(("  %s: %d tensors, %s: %s\n"):format(shard.file, #shard.names, size(shard.bytes),
      require("weft.cli.inspect_about").summary(shard.names)))
  end
  for _, line in ipairs(wrong) do io.write("  wrong: ", line, "\n") end
  if args.stats then
    local weft = require "weft"
    for _, shard in ipairs(shards) do
      local tensors = require("weft.io.safetensors").load((path:match "^(.*/)[^/]*$" or "") .. shard.file) or {}
      for name, t in pairs(tensors) do infos[name].stats = statistics(weft, t) end
    end
  end
  put_tree(infos, names, args)
  return #wrong > 0 and 1 or 0
end

local function one(path, args)
  if path:find "%.index%.json$" then return sharded(path, args) end
  local weft = require "weft"
  local safetensors = require "weft.io.safetensors"
  local file, problem = safetensors.open(path)
  if not file then error(problem, 0) end
  local root, bytes, dtypes = node(), 0, {}
  for _, name in ipairs(file.names) do
    local info = file:info(name)
    info.numel = numel(info.shape)
    bytes = bytes + info.nbytes
    dtypes[info.dtype] = (dtypes[info.dtype] or 0) + 1
    if args.stats then
      local tensor, message = file:tensor(name)
      info.stats = tensor and statistics(weft, tensor) or message
    end
    plant(root, name, info)
  end
  sort(root)
  local kinds = {}
  for dtype, count in pairs(dtypes) do kinds[#kinds + 1] = ("%d %s"):format(count, dtype) end
  table.sort(kinds)
  io.write(("%s\n  %d tensors (%s), %s elements, %s\n"):format(path, #file.names,
    table.concat(kinds, ", "), commas(root.count), size(bytes)))
  for _, line in ipairs(require("weft.cli.inspect_about").adapter(path, commas) or {}) do io.write("  ", line, "\n") end
  local keys = {}
  for key in pairs(file.metadata) do keys[#keys + 1] = key end
  table.sort(keys)
  for _, key in ipairs(keys) do
    local value = file.metadata[key]
    io.write(("  %s: %s\n"):format(key, #value > 200 and value:sub(1, 200) .. "..." or value))
  end
  show(root, "  ", io.write, args.all or args.stats)
  file:close()
  return 0
end

local function quoted(path) return "'" .. path:gsub("'", "'\\''") .. "'" end

-- The safetensors files right in a directory, sorted, or those up to `depth` levels down.
local function files_in(path, depth)
  local p = io.popen(("find %s/ -maxdepth %d -name '*.safetensors' | LC_ALL=C sort"):format(quoted(path), depth))
  local list = {}
  for line in p:lines() do list[#list + 1] = (line:gsub("//+", "/")) end
  p:close()
  return #list > 0 and list or nil
end

-- The files that a path means.
local function files_of(path, tensors_only)
  local f = io.open(path)
  if not f then error(path .. ": there is no such file or directory", 0) end
  local is_folder = f:read(0) == nil and f:seek "end" ~= 0
  f:close()
  if not is_folder then return { path } end
  local index = path:gsub("/+$", "") .. "/model.safetensors.index.json"
  local disk = require "weft.files"
  -- where both are, the whole file is what is read
  if not tensors_only and disk.exists(index) and not disk.exists((path:gsub("/+$", "")) .. "/model.safetensors") then return { index } end
  return files_in(path, 1) or files_in(path, 3)
    or error(path .. ": no .safetensors file in this directory or near below", 0)
end

function M.run(args)
  if #args == 0 then error({ usage = "a file or a directory is expected" }) end
  if #args == 2 and not args.stats and not args.all then
    require("weft.cli.differences").show({ path = args[1], files = files_of(args[1], true) },
      { path = args[2], files = files_of(args[2], true) }, io.write)
    return
  end
  local code = 0
  for _, path in ipairs(args) do
    for _, file in ipairs(files_of(path)) do code = math.max(code, one(file, args)) end
  end
  return code
end

return M
