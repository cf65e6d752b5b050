-- profile_spec.lua: what profile.cpp makes of CUPTI's records, with a library in CUPTI's place that hands over
-- a few. Compiled where cupti.h is; skipped elsewhere.
local ffi = require "ffi"
local command = require "tests.support.command"

local found = select(2, command.run [[
  toolkit=$(dirname "$(dirname "$(readlink -f "$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)")")")
  for d in "$toolkit/include" "$toolkit/extras/CUPTI/include"; do [ -e "$d/cupti.h" ] && echo "-I$toolkit/include -I$d" && break; done]])
local include = found:match "%S[^\n]*"

local FAKE = [[
#include <cupti.h>
static CUpti_BuffersCallbackRequestFunc wanted;
static CUpti_BuffersCallbackCompleteFunc complete;
static struct { CUpti_ActivityKernel10 a, b, c; CUpti_ActivityMemcpy6 m; } *records;
static int at, enabled;
extern "C" {
CUptiResult cuptiActivityRegisterCallbacks(CUpti_BuffersCallbackRequestFunc w, CUpti_BuffersCallbackCompleteFunc c) {
    wanted = w; complete = c; return CUPTI_SUCCESS; }
CUptiResult cuptiActivityEnable(CUpti_ActivityKind) { enabled++; return CUPTI_SUCCESS; }
CUptiResult cuptiActivityDisable(CUpti_ActivityKind) { enabled--; return CUPTI_SUCCESS; }
CUptiResult cuptiActivityFlushAll(uint32_t) {
    if (enabled != 0) return CUPTI_ERROR_UNKNOWN;
    uint8_t *buffer; size_t size, most;
    wanted(&buffer, &size, &most);
    records = reinterpret_cast<decltype(records)>(buffer);
    *records = {};
    const auto kernel = [](CUpti_ActivityKernel10 &k, const char *name, uint64_t start, uint64_t end) {
        k.kind = CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL; k.name = name; k.start = start; k.end = end; };
    kernel(records->a, "_Z3addf", 1000000, 4000000);        // 1 to 4 ms
    kernel(records->b, "_Z3muli", 3000000, 6000000);        // 3 to 6: they overlap
    kernel(records->c, "_Z3addf", 10000000, 11000000);      // 10 to 11
    records->m.kind = CUPTI_ACTIVITY_KIND_MEMCPY; records->m.start = 4000000; records->m.end = 5000000;
    at = 0;
    complete(nullptr, 0, buffer, size, sizeof *records);
    return CUPTI_SUCCESS;
}
CUptiResult cuptiActivityGetNextRecord(uint8_t *, size_t, CUpti_Activity **r) {
    void *all[] = { &records->a, &records->b, &records->c, &records->m };
    if (at == 4) return CUPTI_ERROR_MAX_LIMIT_REACHED;
    *r = static_cast<CUpti_Activity *>(all[at++]);
    return CUPTI_SUCCESS;
}
}]]

describe("the benchmark's profiler", function()
  it("tells kernels and copies, and the time in which one of them ran", function()
    if not include then return pending "wants CUPTI's header" end
    local folder, remove = command.folder()
    local f = assert(io.open(folder .. "/fake.cpp", "w"))
    f:write(FAKE)
    f:close()
    local compile = ("g++ -std=c++17 -O0 -Wall -Wextra -Werror -shared -fPIC %s -o %s/%%s.so %%s"):format(include, folder)
    for name, source in pairs { fake = folder .. "/fake.cpp", profile = "tests/bench/profile.cpp" } do
      local code, _, err = command.run(compile:format(name, source))
      assert(code == 0, err)
    end
    ffi.cdef "const char *profile_start(const char *file); long profile_stop(double *busy, const char *file);"
    local lib = ffi.load(folder .. "/profile.so")
    assert.matches("nowhere.so", ffi.string(lib.profile_start "nowhere.so"))
    assert.equal("not CUPTI", ffi.string(lib.profile_start "libm.so.6"))
    for _ = 1, 2 do    -- the second profile begins anew
      assert.is_true(lib.profile_start(folder .. "/fake.so") == nil)
      local busy = ffi.new "double[1]"
      assert.equal(4, tonumber(lib.profile_stop(busy, folder .. "/table")))
      assert.is_true(math.abs(busy[0] - 6e-3) < 1e-9)
    end
    f = assert(io.open(folder .. "/table"))
    local text = f:read "*a"
    f:close()
    remove()
    assert.matches("^ +4000.0 us +2  add%(float%)\n +3000.0 us +1  mul%(int%)\n +1000.0 us +1  copy\n$", text)
  end)
end)
