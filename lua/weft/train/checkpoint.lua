-- checkpoint.lua: a run's state as a folder: manifest.json, safetensors, state.json. Written to the
-- side, synced, renamed; read back only when every checksum agrees.
local files = require "weft.files"
local C = require("weft.core").lib

local M = {}

local function io_parts() return require "weft.io.safetensors", require "weft.io.json" end

local function hex(n)
  return (bit.tohex(tonumber(bit.rshift(n, 32)), 8) .. bit.tohex(tonumber(bit.band(n, 0xffffffffULL)), 8))
end

---Hash of tensors by name: 16 hexadecimal digits.
function M.checksum(tensors)
  local names = {}
  for name in pairs(tensors) do names[#names + 1] = name end
  table.sort(names)
  local h = 0ULL
  for _, name in ipairs(names) do
    h = C.weft_hash_bytes(name, #name, h)
    h = C.weft_checksum(tensors[name].p, h)
  end
  return hex(h)
end

---Names of checkpoints in a run's folder, newest first.
function M.list(run_dir)
  local dir = run_dir .. "/ckpt/"
  local names = files.list(dir) or {}
  local out = {}
  for _, name in ipairs(names) do
    -- set aside by a save that did not come to its end
    local step = name:match "^%.old_(step_%d+)$"
    if step and not files.exists(dir .. step) and files.rename_dir(dir .. name, dir .. step) then
      names = files.list(dir) or {}
      break
    end
  end
  for _, name in ipairs(names) do
    if name:match "^step_%d+$" then table.insert(out, 1, name) end
  end
  return out
end

---Writes a checkpoint. parts: name -> { tensors by name }; state: plain values.
---@return string|nil dir, string? message
function M.save(run_dir, step, parts, state)
  local safetensors, json = io_parts()
  local bytes = 0
  for _, tensors in pairs(parts) do
    for _, t in pairs(tensors) do bytes = bytes + t:numel() * 8 end
  end
  local ok, message = files.make_dirs(run_dir .. "/ckpt")
  if not ok then return nil, message end
  local free = files.disk_free(run_dir)
  if free >= 0 and free < bytes + 2 ^ 20 then
    return nil, ("no room for a checkpoint in %s: %d MiB free, %d needed; the checkpoints before it are untouched")
      :format(run_dir, free / 2 ^ 20, bytes / 2 ^ 20 + 1)
  end
  local name = ("step_%08d"):format(step)
  local final, side = run_dir .. "/ckpt/" .. name, run_dir .. "/ckpt/.writing_" .. name
  if files.is_dir(side) then files.remove_dir(side) end
  ok, message = files.make_dirs(side)
  if not ok then return nil, message end
  -- what was written so far gives its place back
  local function fail(why)
    files.remove_dir(side)
    return nil, why
  end
  local manifest = { format = "weft checkpoint 1", step = step, files = {} }
  for part, tensors in pairs(parts) do
    local file = part .. ".safetensors"
    ok, message = safetensors.save(side .. "/" .. file, tensors, { format = "pt" })
    if not ok then return fail(message) end
    manifest.files[file] = { bytes = files.size(side .. "/" .. file), checksum = M.checksum(tensors) }
  end
  local text = json.encode(state, { indent = 2, sort = true })
  ok, message = files.write(side .. "/state.json", text)
  if not ok then return fail(message) end
  manifest.files["state.json"] = { bytes = #text, checksum = files.hash(text) }
  ok, message = json.write(side .. "/manifest.json", manifest)
  if not ok then return fail(message) end
  -- one of the same step is set aside until the new one stands
  local aside = run_dir .. "/ckpt/.old_" .. name
  if files.is_dir(aside) then files.remove_dir(aside) end
  if files.is_dir(final) then
    ok, message = files.rename_dir(final, aside)
    if not ok then return nil, message end
  end
  ok, message = files.rename_dir(side, final)
  if not ok then return nil, message end
  files.remove_dir(aside)
  files.write(run_dir .. "/ckpt/latest", name .. "\n")
  return final
end

---Reads a checkpoint, checking each file against the manifest.
---@return table|nil parts, table|string state_or_message
function M.read(dir)
  local safetensors, json = io_parts()
  local manifest, message = json.read(dir .. "/manifest.json")
  if not manifest then return nil, message end
  if type(manifest) ~= "table" or manifest.format ~= "weft checkpoint 1" or type(manifest.files) ~= "table" then
    return nil, dir .. "/manifest.json is no manifest of a weft checkpoint"
  end
  local parts, state = {}, nil
  for file, info in pairs(manifest.files) do
    local path = dir .. "/" .. file
    if files.size(path) ~= info.bytes then
      return nil, ("%s has %d bytes, the manifest says %s"):format(path, files.size(path), tostring(info.bytes))
    end
    if file == "state.json" then
      local text = files.read(path)
      if files.hash(text) ~= info.checksum then return nil, path .. ": the checksum does not agree" end
      state = json.decode(text)
    else
      local tensors, why = safetensors.load(path)
      if not tensors then return nil, why end
      if M.checksum(tensors) ~= info.checksum then return nil, path .. ": the checksum does not agree" end
      parts[file:gsub("%.safetensors$", "")] = tensors
    end
  end
  if not state then return nil, dir .. " has no state.json" end
  return parts, state
end

---The newest checkpoint that verifies, and what was passed over with the reason.
---@return string|nil dir, table|string parts_or_message, table? state, string[]? passed
function M.latest(run_dir)
  local passed = {}
  for _, name in ipairs(M.list(run_dir)) do
    local dir = run_dir .. "/ckpt/" .. name
    local parts, state = M.read(dir)
    if parts then return dir, parts, state, passed end
    passed[#passed + 1] = ("%s passed over: %s"):format(name, tostring(state))
  end
  return nil, #passed > 0 and table.concat(passed, "\n") or ("no checkpoint in %s/ckpt"):format(run_dir)
end

---What a path names: a run's folder, and where it is that of one of the run's checkpoints (RUN/best,
---RUN/ckpt/step_00000120) the checkpoint too.
---@return string run_dir, string? dir
function M.place(path)
  path = #path > 1 and path:gsub("/+$", "") or path
  if not files.exists(path .. "/manifest.json") then return path end
  local full = path:find "/" and path or "./" .. path
  local run_dir = full:match "^(.*)/ckpt/step_%d+$" or full:match "^(.*)/best$"
  return run_dir or path, run_dir and path
end

---Makes RUN/best the checkpoint of a step: outside the rotation, and sharing its bytes on disk.
function M.keep_best(run_dir, name)
  local from, to, side = ("%s/ckpt/%s"):format(run_dir, name), run_dir .. "/best", run_dir .. "/.writing_best"
  local text = files.read(from .. "/manifest.json")
  if text and text == files.read(to .. "/manifest.json") then return true end
  files.remove_dir(side)
  local names, message = files.list(from)
  local ok = names and files.make_dirs(side)
  for _, file in ipairs(ok and names or {}) do
    ok, message = files.duplicate(from .. "/" .. file, side .. "/" .. file)
    if not ok then break end
  end
  if ok and files.is_dir(to) then ok, message = files.remove_dir(to) end
  if ok then ok, message = files.rename_dir(side, to) end
  return ok, message
end

---Keeps the newest n checkpoints and those in `keep` (by name).
function M.prune(run_dir, n, keep)
  for _, name in ipairs(files.list(run_dir .. "/ckpt") or {}) do
    if name:find "^%.writing_" then files.remove_dir(run_dir .. "/ckpt/" .. name) end  -- of a run that was killed
  end
  for i, name in ipairs(M.list(run_dir)) do
    if i > n and not (keep and keep[name]) then files.remove_dir(run_dir .. "/ckpt/" .. name) end
  end
end

M.hex = hex
return M
