-- libfuzzer_spec.lua: the readers of safetensors headers and of JSON under libFuzzer and the sanitizers, for some
-- seconds each; skipped where clang with its runtime is not at hand. A long run: WEFT_FUZZ_SECONDS=600.
local run = require "tests.support.command"
local files = require "weft.files"

local seconds = tonumber(os.getenv "WEFT_FUZZ_SECONDS") or 4
local build = os.getenv "WEFT_BUILD" or "build"
local flags = "-std=gnu11 -D_GNU_SOURCE -g -O1 -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=undefined -Icore -I" .. build .. "/generated"

local targets = {
  { name = "safetensors", source = "core/io/safetensors.c", defines = "-Dmmap=guarded_map -Dmunmap=guarded_unmap",
    words = { '"dtype"', '"shape"', '"data_offsets"', '"__metadata__"', '"F32"', '"BF16"',
    '"I64"', '"BOOL"', "9223372036854775807", "18446744073709551615", "4294967296", "[0,0]", "-1", "{}", "[]" },
    seeds = { "tests/golden/lora/plain/adapter_model.safetensors", "tests/golden/gpm.safetensors", "tests/golden/lora/dora/adapter_model.safetensors" } },
  { name = "json", source = "core/io/json.c", words = { "null", "true", "false", "1e308", "-0", "1e-400", "NaN", "Infinity", '"\\\\ud800"', '"\\\\u0000"',
    "[[", "{}", '":"', "0.1", "18446744073709551616" },
    seeds = { "tests/golden/lora/plain/adapter_config.json",
      "tests/golden/dinov2_mlp/config.json", "tests/golden/lora_transformers5/patterns/adapter_config.json" } },
}

describe("libFuzzer #slow", function()
  local folder, remove, missing
  setup(function()
    folder, remove = run.folder()
    assert(files.write(folder .. "/probe.c", "int LLVMFuzzerTestOneInput(const unsigned char *d, unsigned long n) { return d == 0 && n == 1; }\n"))
    local code = run.run(("clang -fsanitize=fuzzer,address,undefined %s/probe.c -o %s/probe && LD_PRELOAD= %s/probe -runs=1"):format(folder, folder, folder))
    missing = code ~= 0
  end)
  teardown(function() remove() end)

  for _, target in ipairs(targets) do
    it("finds nothing in the reader of " .. target.name, function()
      if missing then return pending "clang with libFuzzer and the sanitizers is not at hand" end
      local binary, corpus = folder .. "/" .. target.name, folder .. "/" .. target.name .. "-corpus"
      -- the reader is compiled here, so that the fuzzer sees its branches; the rest comes from the library
      local code, out, err = run.run(("clang %s %s -c %s -o %s.o && "
        .. "clang %s tests/fuzz/c/%s.c %s.o $(pkg-config --libs jansson) -L%s -lweft -Wl,-rpath,$PWD/%s -o %s")
        :format(flags, target.defines or "", target.source, binary, flags, target.name, binary, build, build, binary))
      assert.equal(0, code, out .. err)
      assert(files.make_dirs(corpus))
      for i, path in ipairs(target.seeds) do assert(files.write(("%s/%d"):format(corpus, i), assert(files.read(path)))) end
      local dictionary = {}
      for i, word in ipairs(target.words) do dictionary[i] = ('w%d="%s"'):format(i, (word:gsub('"', '\\"'))) end
      assert(files.write(binary .. ".dict", table.concat(dictionary, "\n") .. "\n"))
      code, out, err = run.run(("LD_PRELOAD= ASAN_OPTIONS=detect_leaks=1 %s -seed=1 -max_total_time=%d -max_len=20000 "
        .. "-rss_limit_mb=2048 -dict=%s.dict -artifact_prefix=%s/ %s")
        :format(binary, seconds, binary, folder, corpus))
      assert.equal(0, code, (out .. err):sub(-3000))
      local runs = tonumber((out .. err):match "Done (%d+) runs")
      assert.is_true(runs and runs > 100, (out .. err):sub(-500))
    end)
  end
end)
