-- graph.lua: a training step as one CUDA graph: when it is captured, the memory that its batches go
-- through, and why a step ran without it. What it computes is what the step computes that is not captured.
local C = require("weft.core").lib
local create = require("weft.tensor").create
local int64 = require("weft.losses.itc").int64
local random = require "weft.random"
local recording = require "weft.recording"
local scope = require("weft.scope").scope
local Recorder = require "weft.train.recorder"

local M = {}

-- --- what a batch hands over: tensors by field, lists of ids among them, and the shares of its losses
local TENSORS = { "pixels", "patches", "ids", "mask", "image_ids", "caption_ids" }
local TEXT = { "ids", "mask" }

local function shape_of(t) return ("%s [%s]"):format(t.dtype, table.concat(t.shape, ",")) end

-- What the step takes of a batch: not the pictures, where their patches are known.
local function field(batch, name)
  if name == "pixels" and batch.patches then return nil end
  return batch[name]
end

-- Shapes of the batches of a step, in words.
local function signature(batches)
  local words = {}
  for _, batch in ipairs(batches) do
    words[#words + 1] = ("%d pictures%s"):format(#batch.indices, batch.varied and ", varied" or "")
    for _, name in ipairs(TENSORS) do
      local t = field(batch, name)
      if t and name:find "_ids$" == nil then words[#words + 1] = name .. " " .. shape_of(t) end
    end
    for _, name in ipairs(batch.text and TEXT or {}) do words[#words + 1] = "text " .. shape_of(batch.text[name]) end
  end
  return table.concat(words, ", ")
end

-- A field that has no place in the graph must not be read in it: it would stay what it is now. The step is
-- known after a launch.
local ABSENT = { text = true, pixels = true, patches = true, pixel_rows = true, varied = true }
local function guarded(self, t)
  return setmetatable(t, { __index = function(_, key)
    if ABSENT[key] then return nil end
    if key == "step" and not recording.active then return self.step end
    error(("the batch's %s is the host's, and a captured step can't read it"):format(tostring(key)), 0)
  end })
end

-- The batch as the graph sees it: buffers that stay, filled before each launch by copies { buffer, get }.
local function stand_in(self, recorder, batch, micro, copies)
  local device, wide = self.options.device, self.options.dtype == "float64" and "float64" or "float32"
  local function buffer(t, get)
    local spec = t.shape
    spec.dtype, spec.device = t.dtype, device
    local b = create.empty(spec):keep()
    copies[#copies + 1] = { b, get }
    return b
  end
  local function share(get)
    return function() return recorder:scalar(1, function(p) p[0] = get() end):reshape({}):to(wide):keep() end
  end
  local made, later = { micro = batch.micro, varied = batch.varied }, {}
  for _, name in ipairs(TENSORS) do
    local value = field(batch, name)
    if value then
      local ids = name:find "_ids$"
      made[name] = buffer(ids and int64(value) or value, function(batches)
        local now = batches[micro][name]
        return ids and int64(now) or now
      end)
    end
  end
  later[1] = { made, share(function() return self.micro_batches[micro].token_share end) }
  if batch.text then
    made.text = {}
    for _, name in ipairs(TEXT) do
      made.text[name] = buffer(batch.text[name], function(batches) return batches[micro].text[name] end)
    end
    later[2] = { made.text, share(function() return self.micro_batches[micro].text.token_share end) }
    guarded(self, made.text)
  end
  return guarded(self, made), later
end

-- --- capturing
local function capture(self, fn)
  local recorder = Recorder.new(self.options.device, self.step)
  local g = { recorder = recorder, copies = {}, signature = signature(self.micro_batches) }
  self.captured = g
  local stand_ins, later = {}, {}
  for k, batch in ipairs(self.micro_batches) do stand_ins[k], later[k] = stand_in(self, recorder, batch, k, g.copies) end
  recorder:capture(function()
    self.optimizer:zero_grad()
    for k, batch in ipairs(stand_ins) do
      -- shares are worked out on the device, so only here
      for _, share in ipairs(later[k]) do rawset(share[1], "token_share", share[2]()) end
      random.set_step(self.step, k)
      if self.micro_batches[k].draws then random.restore_indices(self.micro_batches[k].draws) end
      scope(self.record_micro, self, batch, fn)
    end
    scope(self.record_optimizer, self)
  end)
  self.optimizer:zero_grad()      -- those of the graph
end

---Lets go of the captured step, if there is one: what trains has changed, or the run is over.
function M:drop_graph()
  local g = self.captured
  self.captured, self.graph_refused, self.plain_steps = nil, nil, 0
  if not g then return end
  g.recorder:free()
  for _, copy in ipairs(g.copies) do copy[1]:free() end
end

-- Says once why something ran without a graph.
local function note(self, format, ...)
  local text = format:format(...)
  self.graph_notes = self.graph_notes or {}
  if self.graph_notes[text] then return end
  self.graph_notes[text] = true
  self.log:line("graph: %s", text)
end

---Whether the next step is to run as a graph: not before the phase has shown that all of it trains, and
---one step has made what lasts (states, tables), and shapes have settled.
function M:wants_graph()
  if not self.options.graph or self.graph_refused then return false end
  if self.options.device == "cpu" then
    self.graph_refused = true
    note(self, "not used: the CPU has none (device=cuda has)")
    return false
  end
  if self.captured then return true end
  if self.unmoved or (self.plain_steps or 0) < 1 then return false end
  local why
  self.model:apply(function(m) why = why or (m.unsettled and m:unsettled()) end)
  return not why
end

local function interrupted(message) return type(message) ~= "string" or C.weft_error_code() == C.WEFT_EINTERRUPTED end

-- Captures the step that is about to be made. False where it can't be, with the reason in the log.
local function ready(self, fn)
  local g = self.captured
  local why = g and g.recorder:stale()
  if why then
    self.log:line("graph: captured anew: %s", why)
    self:drop_graph()
    g = nil
  end
  if g then
    local now = signature(self.micro_batches)
    if now == g.signature then return true end
    note(self, "a step ran without it: its batch is %s", now)
    return false
  end
  local ok, message = pcall(capture, self, fn)
  if not ok then
    self.model:apply(function(m) if m.abandon then m:abandon() end end)
    self:drop_graph()
    if interrupted(message) then error(message, 0) end
    self.graph_refused = true
    self.log:line("graph: not used in %s: %s", self.phase.name, message)
    return false
  end
  local graph = self.captured.recorder.graph
  self.log:line("graph: step %d of %s captured: %d kernels, %.0f MiB", self.step + 1, self.phase.name, graph.kernels, graph.bytes / 2 ^ 20)
  return true
end

---The whole step as a graph. False where nothing has moved: the step is to be made without one.
function M:graph_step(fn)
  for _, batch in ipairs(self.micro_batches) do
    if #batch.indices == 0 then return false end
  end
  if not ready(self, fn) then return false end
  for _, copy in ipairs(self.captured.copies) do
    local t = copy[2](self.micro_batches)
    copy[1]:copy_(t)
  end
  local stood, why = self.captured.recorder:launch(self.step)
  if not stood then note(self, "a step ran without it: %s", why) end
  return stood
end

return M
