require "weft"
local ffi = require "ffi"
local command = require "tests.support.command"
local tb = require "weft.train.tensorboard"
local tiny = require "tests.support.tiny"

-- Fields of a protobuf message: a list of { number, value }.
local function fields(text)
  local out, at = {}, 1
  local function varint()
    local n, scale = 0, 1
    while true do
      local byte = text:byte(at)
      at = at + 1
      n, scale = n + byte % 128 * scale, scale * 128
      if byte < 128 then return n end
    end
  end
  while at <= #text do
    local key = varint()
    local number, wire = math.floor(key / 8), key % 8
    local value
    if wire == 0 then value = varint()
    elseif wire == 1 then value, at = ffi.cast("double *", ffi.cast("const char *", text:sub(at, at + 7)))[0], at + 8
    elseif wire == 5 then value, at = ffi.cast("float *", ffi.cast("const char *", text:sub(at, at + 3)))[0], at + 4
    else
      local n = varint()
      value, at = text:sub(at, at + n - 1), at + n
    end
    out[#out + 1] = { number, value }
  end
  return out
end

local function get(text, number)
  for _, f in ipairs(fields(text)) do
    if f[1] == number then return f[2] end
  end
end

local function le(text)
  local n = 0
  for i = #text, 1, -1 do n = n * 256 + text:byte(i) end
  return n
end

-- Events of a file, every checksum checked.
local function events(path)
  local text, out, at = tiny.read(path), {}, 1
  while at <= #text do
    local n = le(text:sub(at, at + 7))
    local bytes = text:sub(at + 12, at + 11 + n)
    assert.equal(tb.record(bytes), text:sub(at, at + 15 + n))
    out[#out + 1] = bytes
    at = at + 16 + n
  end
  return out
end

local function files_of(dir)
  local _, list = command.run(("ls %s/events.out.tfevents.*"):format(dir))
  local out = {}
  for path in list:gmatch "%S+" do out[#out + 1] = path end
  return out
end

describe("event files", function()
  it("have the checksum that is known", function()
    assert.equal(0xe3069283, tb.crc32c "123456789")
    assert.equal(0x8a9136aa, tb.crc32c(("\0"):rep(32)))
    assert.equal(0, tb.crc32c "")
  end)

  it("mask it as the format wants", function()
    local record = tb.record "123456789"
    assert.equal(9, le(record:sub(1, 8)))
    local c = 0xe3069283
    local turned = (math.floor(c / 2 ^ 15) + c % 2 ^ 15 * 2 ^ 17) % 2 ^ 32
    assert.equal((turned + 0xa282ead8) % 2 ^ 32, le(record:sub(-4)))
  end)

  it("hold every number of metrics.jsonl, the scores, captions, pictures and settings", function()
    local root, remove_pictures = tiny.pictures(24)
    local run, remove = tiny.run(root, { "epochs=2", "warmup_epochs=1" })
    run:train()
    local list = events(files_of(run.dir)[1])
    assert.equal("brain.Event:2", get(list[1], 3))
    local found, texts, pictures, settings = {}, 0, 0, nil
    for _, event in ipairs(list) do
      local step, summary = get(event, 2), get(event, 5)
      for _, f in ipairs(summary and fields(summary) or {}) do
        local tag, v, image = get(f[2], 1), get(f[2], 2), get(f[2], 4)
        if v then found[("%s@%d"):format(tag, step)] = v end
        if image then
          pictures = pictures + 1
          assert.equal("\137PNG", get(image, 4):sub(1, 4))
        end
        if tag == "captions/text_summary" then texts = texts + 1 end
        if tag == "_hparams_/session_start_info" then settings = get(get(get(f[2], 9), 1), 2) end
      end
    end
    for _, row in ipairs(tiny.metrics(run.dir)) do
      for _, pair in ipairs { { "loss/total", "loss_total" }, { "lr/decay", "lr_decay" }, { "train/grad_norm", "grad_norm" }, { "loss/itm", "loss_itm" } } do
        assert.equal(tonumber(ffi.new("float", row[pair[2]])), found[("%s@%d"):format(pair[1], row.step)])
      end
    end
    local result = tiny.json(run.dir .. "/result.json")
    assert.equal(tonumber(ffi.new("float", result.retrieval.r_mean)), found["eval/retrieval.r_mean@" .. run.step])
    assert.equal(3, texts)
    assert.equal(#result.captions.samples, pictures)
    local rank
    for _, f in ipairs(fields(get(settings, 3))) do
      if f[1] == 1 and get(f[2], 1) == "lora.rank" then rank = get(get(f[2], 2), 2) end
    end
    assert.equal(2, rank)
    remove()
    remove_pictures()
  end)

  it("of a run that goes on say from where what was written before is void", function()
    local folder, remove = command.folder()
    local log = setmetatable({}, { __index = tb })
    local a = log.open(folder, 0)
    local b = log.open(folder, 7)
    assert.not_equal(a.path, b.path)
    a.file:close()
    b.file:close()
    assert.equal(1, #events(a.path))
    local start = events(b.path)[2]
    assert.equal(8, get(start, 2))
    assert.equal(1, get(get(start, 7), 1))
    remove()
  end)

  it("are not written where they are not wanted", function()
    local root, remove_pictures = tiny.pictures(12)
    local work, remove = command.folder()
    local code, _, err = command.weft(("train %s --quiet --no-tensorboard --dir %s/run"):format(
      tiny.words(root, { "epochs=1", "warmup_epochs=1" }), work))
    assert.equal(0, code, err)
    assert.same({}, files_of(work .. "/run"))
    remove()
    remove_pictures()
  end)
end)

describe("the live line", function()
  local fit = require("weft.train.log").fit
  local pieces = { { "Phase 1", 7 }, { "step 15/200", 9 }, { "loss 8.987", 10 }, { "(itc 3.3 lm 4.4)", 3 }, { "12 tok/s", 1 }, { "ETA 2min", 8 } }

  it("leaves out its lightest pieces where it is too wide, and keeps their order", function()
    assert.equal("Phase 1  step 15/200  loss 8.987  (itc 3.3 lm 4.4)  12 tok/s  ETA 2min", fit(pieces))
    assert.equal("Phase 1  step 15/200  loss 8.987  (itc 3.3 lm 4.4)  ETA 2min", fit(pieces, 65))
    assert.equal("step 15/200  loss 8.987  ETA 2min", fit(pieces, 40))
    assert.equal("loss 8", fit(pieces, 6))
  end)

  it("is never wider than the terminal, which may change, and is redrawn in place", function()
    local root, remove_pictures = tiny.pictures(24)
    local folder, remove = command.folder()
    tiny.write(folder .. "/run.sh", ("stty cols 60\nbin/weft train %s --dir %s/run\n"):format(
      tiny.words(root, { "epochs=2", "warmup_epochs=1", "log_every=100" }), folder))
    local _, out = command.run(("LD_PRELOAD= script -qec 'env LD_PRELOAD=%s sh %s/run.sh' /dev/null"):format(os.getenv "LD_PRELOAD" or "", folder))
    local n = 0
    for line in out:gmatch "\r\27%[K(Phase %d  [^\r\n\27]*)" do
      n = n + 1
      assert.is_true(#line < 60, line)
      assert.truthy(line:find("loss", 1, true))
    end
    assert.is_true(n >= 5, out)
    remove()
    remove_pictures()
  end)
end)
