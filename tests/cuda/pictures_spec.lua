-- pictures_spec.lua: pictures that a GPU finishes (WEFT_TEST_DEVICE) are those of the CPU, byte for byte.
local weft = require "weft"
local loader = require "weft.io.loader"
local near = require "tests.support.near"
local support = require "tests.io.support"

local device = os.getenv "WEFT_TEST_DEVICE" or "cpu"
local golden = support.golden .. "preprocess/"
local names = { "wide.png", "tall.png", "photo.jpg", "small.png", "exif6.jpg", "rgba.png", "grey.png", "palette.png" }

local function plan()
  local list = {}
  for i, name in ipairs(names) do list[i] = { path = golden .. name, resize = i == 3 and { 32, 32 } or 40, flip = i % 2 == 0 } end
  list[#list + 1] = { path = golden .. "photo.jpg", crop = { 10, 20, 100, 120 }, resize = { 24, 50 }, filter = "bilinear" }
  list[#list + 1] = { path = golden .. "wide.png", resize = 40, window = { 3, 5, 20, 17 }, flip = true }    -- enlarged again
  list[#list + 1] = { path = golden .. "small.png" }       -- cut, or padded with black
  list[#list + 1] = { path = golden .. "nothing.png", resize = 40 }
  return list
end

if device == "cpu" then
  describe("a loader without a GPU", function()
    it("hands over bytes that the operator finishes as the threads do", function()
      local options = { height = 32, width = 32 }
      local here = loader.new(options)
      options.place = { device = "cpu" }
      local there = loader.new(options)
      local want, problems = here:take(here:submit(plan()))
      local got, same_problems = there:take(there:submit(plan()))
      assert.is_true(near.same(want, got))
      assert.same(problems, same_problems)
      here:close()
      there:close()
    end)
  end)
  return
end

describe("a loader that finishes pictures on " .. device, function()
  local function both(options, dtype)
    options.height, options.width = 32, 32
    local here = loader.new(options)
    options.place = { device = device, dtype = dtype }
    return here, loader.new(options)
  end

  for cache, what in pairs { [0] = "as they were decoded", [1e6] = "from its cache", [12000] = "some from its cache" } do
    it("gives the CPU's bytes, " .. what, function()
      local here, there = both { cache = cache, threads = 3 }
      for _ = 1, 2 do
        local want, problems = here:take(here:submit(plan()))
        local got, same_problems = there:take(there:submit(plan()))
        assert.equal(device, got.device)
        assert.is_true(near.same(want, got:to "cpu"))
        assert.same(problems, same_problems)
        assert.is_string(problems[#names + 4])
      end
      here:close()
      there:close()
    end)
  end

  it("sends bytes, not floats, and waits for nothing", function()
    local _, there = both { cache = 1e6 }
    local list = {}
    for i = 1, 8 do list[i] = { path = golden .. names[i], resize = 40 } end
    there:take(there:submit(list))
    local before = weft.cuda.counters(device)
    there:take(there:submit(list))
    local after = weft.cuda.counters(device)
    -- at their final size now; the plan is 12 numbers a picture
    assert.equal(8 * (32 * 32 * 3 + 12 * 8), after.upload_bytes - before.upload_bytes)
    if os.getenv "WEFT_CUDA_BLOCKING" ~= "1" then assert.equal(0, after.synchronizations - before.synchronizations) end
    there:close()
  end)

  it("rounds to the dtype that the model computes in", function()
    local here, there = both({}, "bfloat16")
    local want = here:take(here:submit(plan()))
    local got = there:take(there:submit(plan()))
    assert.equal("bfloat16", got.dtype)
    assert.is_true(near.same(want:to "bfloat16", got:to "cpu"))
    here:close()
    there:close()
  end)
end)
