-- gpu.lua: weft's side of the benchmark on a device: one row a process. It prepares the row, prints
-- "ready", and for each line on its input: "run" prints seconds a step and those until all was issued,
-- "peak" MiB live and held at most, "launches" kernels and waits of one step, and the seconds in which the
-- GPU was at work for it (0 where that is not known). BENCH_PROFILE=FOLDER: its kernels by name, in a file.
-- Usage: luajit tests/bench/gpu.lua ROW DEVICE DTYPE [tiny] [graph]   (started by tests/bench/run --device)
-- graph: the step is captured once, as graph=true does it in training, and launched as one.
package.path = "tests/bench/?.lua;" .. package.path
local ffi = require "ffi"
local weft = require "weft"
local stage1 = require "weft_stage1"
local nn = weft.nn

local row, device, dtype = arg[1], arg[2], arg[3]
local tiny, by_graph = arg[4] == "tiny", arg[#arg] == "graph"
local c = tiny and stage1.tiny or stage1.base
local side = tiny and 56 or 224

ffi.cdef [[
typedef struct { long sec, nsec; } bench_timespec;
int clock_gettime(int clock, bench_timespec *t);
]]
local time = ffi.new "bench_timespec"
local function now()
  ffi.C.clock_gettime(1, time)
  return tonumber(time.sec) + 1e-9 * tonumber(time.nsec)
end
local function wait() if device ~= "cpu" then weft.cuda.synchronize(device) end end

local place = { device = device, dtype = dtype ~= "float32" and dtype or nil }
local function moved(module) module:to(place) return module end
local function randn(...) return weft.randn({ device = device, ... }):to(place) end

local RATE = 1e-4
local function adamw(modules)
  local params = {}
  for _, module in ipairs(modules) do
    for _, t in module:named_parameters() do
      if t.requires_grad then params[#params + 1] = t end
    end
  end
  return weft.optim.AdamW(params, { lr = RATE, betas = { 0.9, 0.98 }, eps = 1e-8, weight_decay = 0.05 })
end

-- A step that moves what `modules` train by the gradient of loss(), and its optimizer.
local function training(modules, loss, clip)
  local optimizer = adamw(modules)
  for i, module in ipairs(modules) do       -- draws that a captured step repeats have names
    module:assign_paths()
    module:apply(function(m) rawset(m, "_path", i .. "." .. m._path) end)
  end
  return function()
    optimizer:zero_grad()
    local value, recorder = loss(), weft.recording.active
    value:backward()
    if recorder then recorder:demand(weft.isfinite(value), "the loss is not finite") end
    if clip then weft.optim.clip_grad_norm(optimizer, clip) end
    optimizer:step(recorder and { function() return RATE end } or nil)
  end, optimizer
end

-- The step as one graph. One that trains checks its loss and gets its rates on the device, as in training.
local function captured(step, optimizer)
  for _ = 1, 2 do weft.scope(step) end      -- what lasts is made: states, tables
  if not optimizer then
    local graph = weft.cuda.graph(device, function() weft.scope(step) end)
    return function() graph:launch() end
  end
  local recorder, at = require("weft.train.recorder").new(device, 0), 0
  recorder:capture(function() weft.scope(step) end)
  optimizer:zero_grad()
  return function()
    at = at + 1
    assert(recorder:launch(at))
  end
end

-- A row's prepare function gives its step, and its optimizer if it has one; `n` is its batch.
local rows = {}

function rows.forward(n)
  local model = moved(weft.models.dinov2.new(stage1.encoder(c)):freeze():eval())
  local pixels = randn(n, 3, side, side)
  return function() weft.no_grad(function() model(pixels) end) end
end

local function phase(n, lora)
  local model = weft.models.dinov2.new(stage1.encoder(c))
  if lora then weft.peft.lora(model, c.lora) else model:freeze() end
  local width, hidden, out = c.encoder.width, c.compress.hidden, c.compress.width
  local compress = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(c.compress.dropout), nn.Linear(hidden, out), nn.LayerNorm(out))
  moved(model):train()
  moved(compress):train()
  local pixels, target = randn(n, 3, side, side), randn(n, (side / 14) ^ 2, out)
  return training({ model, compress }, function()
    local off = compress(model(pixels).patches) - target
    return (off * off):mean()
  end)
end
function rows.phase1(n) return phase(n, false) end
function rows.phase2(n) return phase(n, true) end

function rows.lm(n)
  local length, l = tiny and 12 or 128, c.language
  local model = moved(weft.models.llama { vocab = c.data.vocab, width = l.width, layers = l.layers, ff = l.ff, heads = l.heads }):train()
  local ids = weft.randint({ n, length, low = 0, high = c.data.vocab }):to(device)
  return training({ model }, function() return model:loss(model:encode(ids), ids) end)
end

function rows.stage1(n)
  c.data.batch = n
  local model = stage1.model(c)
  stage1.fill_queue(model, c)
  moved(model)
  local batch = stage1.on(stage1.batch(c, n, 1), device, dtype)
  return training({ model }, function()
    local loss = stage1.total(model:losses(batch), c.weights)
    model.queue.pending = {}   -- the queue stays as it was: every step sees the same
    return loss
  end, 1)
end

function rows.product(n)
  local a, b = randn(n, n), randn(n, n)
  return function() weft.matmul(a, b) end
end

function rows.copy(n)
  local a = randn(n, 1024, 1024)
  return function() local _ = a:clone() end
end

-- profile.cpp, where tests/gpu/bundle built it and CUPTI is there.
ffi.cdef [[
const char *profile_start(const char *file);
long profile_stop(double *busy, const char *file);
]]
local profiler
if device:find "^cuda" and device ~= "cuda-sim" then
  local ok, lib = pcall(ffi.load, (os.getenv "BENCH_BUILD" or os.getenv "WEFT_BUILD" or "build") .. "/libbench_profile.so")
  profiler = ok and lib or nil
end
local function busy_seconds(fn)
  local why = profiler and profiler.profile_start(os.getenv "BENCH_CUPTI" or "libcupti.so.13")
  if not profiler or why ~= nil then
    if why then io.stderr:write("no profile: ", ffi.string(why), "\n") end
    fn()
    return 0
  end
  fn()
  wait()
  local busy, folder = ffi.new "double[1]", os.getenv "BENCH_PROFILE"
  profiler.profile_stop(busy, folder and ("%s/%s-weft.txt"):format(folder, row) or nil)
  return busy[0]
end

local name, n = row:match "^(%a+%d?)_(%d+)$"
local step, optimizer = assert(rows[name], "no such row: " .. row)(tonumber(n))
if by_graph then step = captured(step, optimizer) end
io.stdout:setvbuf "line"
wait()
print "ready"
for line in io.lines() do
  local what, count = line:match "^(%a+)%s*(%d*)$"
  if what == "run" then
    count = tonumber(count) or 1
    local start = now()
    for _ = 1, count do weft.scope(step) end
    local issued = now() - start
    wait()
    print(("%.9g %.9g"):format((now() - start) / count, issued / count))
  elseif what == "reset" then
    weft.reset_peak(device)
    print "0"
  elseif what == "peak" then
    local m = weft.memory(device)
    print(("%.1f %.1f"):format(m.peak / 2 ^ 20, (m.live + m.cached) / 2 ^ 20))
  elseif what == "launches" then
    local before = device ~= "cpu" and weft.cuda.counters(device) or { launches = 0, graphs = 0, synchronizations = 0 }
    weft.scope(step)
    local after = device ~= "cpu" and weft.cuda.counters(device) or before
    wait()
    local busy = busy_seconds(function() weft.scope(step) end)
    local launches = after.launches - before.launches + after.graphs - before.graphs
    print(("%d %d %.9g"):format(launches, after.synchronizations - before.synchronizations, busy))
  end
end
