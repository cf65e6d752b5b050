-- tensorboard.lua: event files that TensorBoard reads: scalars, pictures, texts, hyper-parameters. The format
-- is TFRecord around protobuf messages (tensorflow/core/util/event.proto), written here by hand.
local ffi = require "ffi"
local bit = require "bit"

local M = {}

-- --- CRC-32C (Castagnoli), masked as TFRecord wants it
local crc_table = ffi.new "uint32_t[256]"
for i = 0, 255 do
  local c = i
  for _ = 1, 8 do c = bit.band(c, 1) ~= 0 and bit.bxor(bit.rshift(c, 1), 0x82F63B78) or bit.rshift(c, 1) end
  crc_table[i] = bit.tobit(c) % 2 ^ 32
end

---CRC-32C of a string, as a number from 0.
function M.crc32c(text)
  local c = bit.tobit(0xFFFFFFFF)
  for i = 1, #text do
    c = bit.bxor(bit.tobit(tonumber(crc_table[bit.band(bit.bxor(c, text:byte(i)), 255)])), bit.rshift(c, 8))
  end
  return bit.bnot(c) % 2 ^ 32
end

local function u32(n) return string.char(n % 256, math.floor(n / 2 ^ 8) % 256, math.floor(n / 2 ^ 16) % 256, math.floor(n / 2 ^ 24) % 256) end

local function masked(text)
  local c = bit.tobit(M.crc32c(text))
  local turned = bit.bor(bit.rshift(c, 15), bit.lshift(c, 17)) % 2 ^ 32
  return u32((turned + 0xa282ead8) % 2 ^ 32)
end

---One record: length, its checksum, the bytes, theirs.
function M.record(bytes)
  local length = u32(#bytes) .. "\0\0\0\0"
  return length .. masked(length) .. bytes .. masked(bytes)
end

-- --- protobuf
local function varint(n)
  local out = {}
  repeat
    local low = n % 128
    n = (n - low) / 128
    out[#out + 1] = string.char(n > 0 and low + 128 or low)
  until n == 0
  return table.concat(out)
end
local function int(field, n) return varint(field * 8) .. varint(n) end
local function bytes(field, text) return varint(field * 8 + 2) .. varint(#text) .. text end
local function double(field, v) return varint(field * 8 + 1) .. ffi.string(ffi.new("double[1]", v), 8) end
local function float(field, v) return varint(field * 8 + 5) .. ffi.string(ffi.new("float[1]", v), 4) end

local function plugin(name, content) return bytes(9, bytes(1, bytes(1, name) .. (content and bytes(2, content) or ""))) end

-- A tensor of texts [n].
local function texts(list)
  local out = { int(1, 7), bytes(2, bytes(2, int(1, #list))) }
  for _, text in ipairs(list) do out[#out + 1] = bytes(8, text) end
  return table.concat(out)
end

local function value_of(v)
  if type(v) == "number" then return double(2, v) end
  if type(v) == "boolean" then return int(4, v and 1 or 0) end
  return bytes(3, tostring(v))
end

local Events = {}
Events.__index = Events

---Event files in a folder; after step, what earlier files say is void (a run that went on from a checkpoint).
---@param dir string
---@param step? integer
function M.open(dir, step)
  local host = (require("weft.files").read "/etc/hostname" or "host"):match "[%w%-]+" or "host"
  local n = 0
  local path
  repeat
    path = ("%s/events.out.tfevents.%010d.%s.%d.weft"):format(dir, os.time(), host, n)
    n = n + 1
  until not require("weft.files").exists(path)
  local f, message = io.open(path, "wb")
  if not f then error("tensorboard: " .. message, 0) end
  local self = setmetatable({ file = f, path = path }, Events)
  self:event(0, bytes(3, "brain.Event:2"))
  if step and step > 0 then self:event(step + 1, bytes(7, int(1, 1))) end
  return self
end

function Events:event(step, content)
  self.file:write(M.record(double(1, os.time()) .. int(2, step) .. content))
  self.file:flush()
end

local function value(self, step, tag, content) self:event(step, bytes(5, bytes(1, bytes(1, tag) .. content))) end

---Numbers by tag, as one event.
function Events:scalars(step, by_tag)
  local tags, parts = {}, {}
  for tag in pairs(by_tag) do tags[#tags + 1] = tag end
  table.sort(tags)
  for i, tag in ipairs(tags) do parts[i] = bytes(1, bytes(1, tag) .. float(2, by_tag[tag])) end
  if #parts > 0 then self:event(step, bytes(5, table.concat(parts))) end
end

---A text, in Markdown.
function Events:text(step, tag, text) value(self, step, tag .. "/text_summary", plugin "text" .. bytes(8, texts { text })) end

---A picture: the bytes of a PNG.
function Events:picture(step, tag, png, height, width)
  value(self, step, tag, bytes(4, int(1, height) .. int(2, width) .. int(3, 3) .. bytes(4, png)))
end

local nothing = bytes(8, int(1, 1) .. bytes(2, "") .. float(5, 0))

---A run's settings, and the figures by which runs are compared.
---@param settings table<string, any>  by path
---@param metrics string[]  tags
function Events:settings(settings, metrics)
  local paths, infos, map = {}, {}, {}
  for path in pairs(settings) do paths[#paths + 1] = path end
  table.sort(paths)
  for i, path in ipairs(paths) do
    local v = settings[path]
    local kind = type(v) == "number" and 3 or type(v) == "boolean" and 2 or 1
    infos[i] = bytes(4, bytes(1, path) .. int(4, kind))
    map[i] = bytes(1, bytes(1, path) .. bytes(2, value_of(v)))
  end
  for _, tag in ipairs(metrics) do infos[#infos + 1] = bytes(5, bytes(1, bytes(2, tag))) end
  value(self, 0, "_hparams_/experiment", plugin("hparams", int(1, 0) .. bytes(2, table.concat(infos))) .. nothing)
  value(self, 0, "_hparams_/session_start_info", plugin("hparams", int(1, 0) .. bytes(3, table.concat(map) .. double(5, os.time()))) .. nothing)
end

---The run is over, well or not.
function Events:finish(well)
  value(self, 0, "_hparams_/session_end_info",
    plugin("hparams", int(1, 0) .. bytes(4, int(1, well and 1 or 2) .. double(2, os.time()))) .. nothing)
  self.file:close()
end

-- --- what a run says
local PREFIX = { loss = "loss/", lr = "lr/", prior = "prior/" }

---The numbers of a row of metrics.jsonl by tag.
function M.tags(row)
  local out = {}
  for key, v in pairs(row) do
    if type(v) == "number" and key ~= "step" then
      local head, rest = key:match "^(%a+)_(.+)$"
      out[head and PREFIX[head] and PREFIX[head] .. rest or "train/" .. key] = v
    end
  end
  return out
end

---Figures of an evaluation by tag, and its captions as a table in Markdown, or nil.
function M.scores(values)
  local out, rows = {}, {}
  for name, figures in pairs(values) do
    for k, v in pairs(type(figures) == "table" and figures or {}) do
      if type(v) == "number" then out["eval/" .. name .. "." .. k] = v end
    end
  end
  for i, s in ipairs(values.captions and values.captions.samples or {}) do
    rows[i] = ("| %s | %s | %s |"):format((s.name:match "[^/]*$"):gsub("|", "\\|"), (s.caption:gsub("|", "\\|")), (s.generated:gsub("|", "\\|")))
  end
  return out, #rows > 0 and "| picture | its caption | generated |\n|---|---|---|\n" .. table.concat(rows, "\n") or nil
end

---Puts a run's event file beside its log.
function M.attach(run)
  local events = M.open(run.dir, run.step)
  run.events, run.log.events = events, events
  local flat = require("weft.config").flat(run.config)
  local settings = {}
  for path, v in pairs(flat) do settings[path] = type(v) == "table" and require("weft.ablate.grid").text(v) or v end
  events:settings(settings, { "loss/total", run.recipe.metric and "eval/" .. run.recipe.metric or nil })
  local lines = {}
  for path, v in pairs(settings) do lines[#lines + 1] = ("    %s=%s"):format(path, tostring(v)) end
  table.sort(lines)
  events:text(run.step, "config", table.concat(lines, "\n"))
end

---After an evaluation: its figures, captions, and at the first time the pictures.
function M.evaluated(run, entry)
  local events = run.events
  local scores, table_of_captions = M.scores(entry.values)
  events:scalars(entry.step, scores)
  if not table_of_captions then return end
  events:text(entry.step, "captions", ("**%s**\n\n%s"):format(entry.label, table_of_captions))
  if run.pictured then return end
  run.pictured = true
  local image = require "weft.io.image"
  for i, s in ipairs(entry.values.captions.samples) do
    local picture = image.load(s.path)
    if picture then
      local small = image.within(picture, 160)
      events:picture(entry.step, ("samples/%d %s"):format(i, s.name:match "[^/]*$"), image.png(small), small.shape[1], small.shape[2])
    end
  end
end

return M
