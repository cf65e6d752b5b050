-- rows.lua: weft's side of the benchmark: one row a process. It prepares the row, prints "ready", and
-- for each line "run" on its input prints what one run took; "peak" prints memory in MiB and copies.
-- Usage: luajit tests/bench/rows.lua ROW   (started by tests/bench/run)
package.path = "tests/bench/?.lua;" .. package.path
local ffi = require "ffi"
local weft = require "weft"
local stage1 = require "weft_stage1"
local nn, optim = weft.nn, weft.optim
local core = require "weft.core"
local state = core.state

ffi.cdef [[
typedef struct { long sec, nsec; } bench_timespec;
int clock_gettime(int clock, bench_timespec *t);
void cblas_sgemm(int order, int ta, int tb, int m, int n, int k, float alpha, const float *a, int lda,
                 const float *b, int ldb, float beta, float *c, int ldc);
void openblas_set_num_threads(int n);
]]
local time = ffi.new "bench_timespec"
local function now()
  ffi.C.clock_gettime(1, time)
  return tonumber(time.sec) + 1e-9 * tonumber(time.nsec)
end

local function timed(fn)
  return function()
    local start = now()
    weft.scope(fn)
    return now() - start
  end
end

local function adamw(modules)
  local named = {}
  for _, module in ipairs(modules) do
    for name, t in module:named_parameters() do
      if t.requires_grad then named[#named + 1] = { #named .. name, t } end
    end
  end
  local params = {}
  for i, entry in ipairs(named) do params[i] = entry[2] end
  return optim.AdamW(params, { lr = 1e-4, betas = { 0.9, 0.98 }, eps = 1e-8, weight_decay = 0.05 }), params
end

local rows = {}

local function forward(batch)
  return function()
    local model = weft.models.dinov2.new(stage1.encoder(stage1.base)):freeze():eval()
    local pixels = weft.randn { batch, 3, 224, 224 }
    return timed(function() weft.no_grad(function() model(pixels) end) end)
  end
end
rows.forward1, rows.forward8 = forward(1), forward(8)

-- Encoder and compressor with a plain loss: what a step costs before language comes in.
local function phase(lora)
  return function()
    local c = stage1.base
    local model = weft.models.dinov2.new(stage1.encoder(c))
    if lora then weft.peft.lora(model, c.lora) else model:freeze() end
    local compress = nn.Sequential(nn.Linear(768, 384), nn.ReLU(), nn.Dropout(0.1), nn.Linear(384, 128), nn.LayerNorm(128))
    model:train()
    compress:train()
    local optimizer = adamw { model, compress }
    local pixels, target = weft.randn { 8, 3, 224, 224 }, weft.randn { 8, 256, 128 }
    return timed(function()
      optimizer:zero_grad()
      local off = compress(model(pixels).patches) - target
      ;(off * off):mean():backward()
      optimizer:step()
    end)
  end
end
rows.phase1, rows.phase2 = phase(false), phase(true)

local function language()
  local c = stage1.base
  return weft.models.llama { vocab = c.data.vocab, width = c.language.width, layers = c.language.layers, ff = c.language.ff,
    heads = c.language.heads }
end

function rows.lm()
  local model = language():train()
  local optimizer = adamw { model }
  local ids = weft.randint { 16, 64, low = 0, high = 32768 }
  return timed(function()
    optimizer:zero_grad()
    model:loss(model:encode(ids), ids):backward()
    optimizer:step()
  end)
end

function rows.greedy()
  local model = language():eval()
  local prompt = weft.randint { 1, 16, low = 0, high = 32768 }
  return timed(function() model:generate(prompt, { max_new_tokens = 64 }) end)
end

function rows.stage1()
  local c = stage1.base
  local model = stage1.model(c)
  stage1.fill_queue(model, c)
  local batch = stage1.batch(c, c.data.batch, 1)
  local optimizer, params = adamw { model }
  return timed(function()
    optimizer:zero_grad()
    stage1.total(model:losses(batch), c.weights):backward()
    model.queue.pending = {}   -- the queue stays as it was: every run sees the same
    weft.no_grad(function()
      local grads = {}
      for i, t in ipairs(params) do grads[i] = t.grad end
      weft.clip_(weft.global_norm(grads), grads, 1)
    end)
    optimizer:step()
  end)
end

-- Seconds for one operator over four numbers, the call from the language included.
local function overhead(tape)
  return function()
    local n, x, w = 2000, weft.randn { 4 }, weft.randn { 4 }
    if tape then w:requires_grad_() end
    local run = timed(function()
      for _ = 1, n do local _ = x * w end
    end)
    return function()
      local best = math.huge
      for _ = 1, 20 do best = math.min(best, run() / n) end
      return best
    end
  end
end
rows.operator, rows.operator_tape = overhead(false), overhead(true)

-- Forward and backward over a chain, an operator of both.
function rows.chain()
  local n, x = 500, weft.randn { 4 }:requires_grad_()
  local run = timed(function()
    local y = x
    for _ = 1, n do y = y * x end
    y:sum():backward()
    x:zero_grad()
  end)
  return function()
    local best = math.huge
    for _ = 1, 20 do best = math.min(best, run() / n) end
    return best
  end
end

-- One plain BLAS call with as many threads: what products of this size could reach.
function rows.sgemm()
  local m, n, k = 2056, 3072, 768
  local a, b, c = weft.randn { m, k }, weft.randn { n, k }, weft.zeros { m, n }
  local blas = ffi.load "openblas"
  local function pointer(t) return ffi.cast("float *", t.p.v.data) end
  local pa, pb, pc = pointer(a), pointer(b), pointer(c)
  return timed(function()
    blas.openblas_set_num_threads(core.lib.weft_threads())
    blas.cblas_sgemm(101, 111, 112, m, n, k, 1, pa, k, pb, k, 0, pc, n)
  end)
end

-- The same shapes through the operator.
function rows.linear()
  local x, w = weft.randn { 8, 257, 768 }, weft.randn { 3072, 768 }
  return timed(function() weft.linear(x, w) end)
end

-- A model directory as Hugging Face's, opened; and opened to compute one picture. What the run before left
-- goes first, as Python lets it go by itself.
local files = os.getenv "BENCH_FILES"
local function alone(run)
  return function()
    collectgarbage()
    collectgarbage()
    return run()
  end
end
local function opened(pixels)
  return function()
    local x = pixels and weft.randn { 1, 3, 224, 224 }
    return alone(timed(function()
      local model = weft.models.dinov2.from_pretrained(files .. "/model")
      if x then weft.no_grad(model, x) end
    end))
  end
end
rows.open, rows.first = opened(false), opened(true)

-- `weft features` from its words to its file.
function rows.features()
  local command = require "weft.cli.features"
  return alone(timed(function()
    assert(command.run { files .. "/model", files .. "/pictures", output = files .. "/weft.safetensors", pool = "cls" } == 0)
  end))
end

local prepare = rows[arg[1]] or error("no such row: " .. tostring(arg[1]))
local run = prepare()
io.stdout:setvbuf "line"
print "ready"
for line in io.lines() do
  if line == "run" then
    local before = state.copies
    local seconds = run()
    print(("%.9g %d"):format(seconds, tonumber(state.copies - before)))
  elseif line == "peak" then
    local status = assert(io.open "/proc/self/status"):read "*a"
    print(("%.1f"):format(tonumber(status:match "VmHWM:%s*(%d+)") / 1024))
  end
end
