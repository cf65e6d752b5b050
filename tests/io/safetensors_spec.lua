local safetensors = require "weft.io.safetensors"
local support = require "tests.io.support"
local C = require("weft.core").lib
local ffi = require "ffi"
local le = support.le

local dtypes = { "float32", "float64", "bfloat16", "float16", "int32", "int64", "uint8", "bool" }

-- A file from a header's text and data, without the writer.
local function file_of(header, data) return le(#header, 8) .. header .. (data or "") end

describe("safetensors", function()
  local dir, path
  setup(function()
    dir = support.directory()
    path = dir .. "t.safetensors"
  end)
  teardown(support.cleanup)

  local function refused(bytes, message)
    support.write(path, bytes)
    local tensors, got = safetensors.load(path)
    assert.is_nil(tensors)
    assert.matches("t.safetensors: ", got, 1, true)
    assert.matches(message, got)
  end

  it("brings back every dtype, shape and metadata", function()
    local tensors = {}
    for _, dtype in ipairs(dtypes) do
      tensors["v." .. dtype] = support.tensor({ 1, 0, 1, 1, 0, 1 }, { 2, 3 }, dtype)
    end
    tensors.scalar = support.tensor({ 2.5 }, {}, "float64")
    tensors.empty = support.tensor({}, { 0, 4 }, "int64")
    assert.is_true(safetensors.save(path, tensors, { format = "pt", ["ключ"] = "é\n" }))
    local got, metadata = safetensors.load(path)
    assert.same({ format = "pt", ["ключ"] = "é\n" }, metadata)
    for name, t in pairs(tensors) do
      local want, shape, dtype = support.values(t)
      assert.same({ want, shape, dtype }, { support.values(got[name]) }, name)
      got[name] = nil
    end
    assert.is_nil(next(got))
  end)

  it("lays files out as Hugging Face's writer does", function()
    safetensors.save(path, { b = support.tensor({ 1 }, { 1 }, "uint8"), a = support.tensor({ 1 }, { 1 }, "float32"),
      c = support.tensor({ 2 }, {}, "int64") }, { k = "v" })
    local header = '{"__metadata__":{"k":"v"},"c":{"dtype":"I64","shape":[],"data_offsets":[0,8]},'
      .. '"a":{"dtype":"F32","shape":[1],"data_offsets":[8,12]},"b":{"dtype":"U8","shape":[1],"data_offsets":[12,13]}}'
    header = header .. (" "):rep(-#header % 8)
    assert.equal(file_of(header, le(2, 8) .. "\0\0\128\63" .. "\1"), support.read(path))
  end)

  it("writes strided views in row-major order", function()
    local t = support.tensor({ 1, 2, 3, 4, 5, 6 }, { 2, 3 })
    local view = C.weft_strided(t.p, ffi.new("int64_t[2]", { 3, 2 }), ffi.new("int64_t[2]", { 1, 3 }), 2, 0)
    assert.is_true(safetensors.save(path, { t = require("weft.args").wrap(view) }))
    local values, shape = support.values(safetensors.load(path).t)
    assert.same({ 1, 4, 2, 5, 3, 6 }, values)
    assert.same({ 3, 2 }, shape)
  end)

  it("shares the file's pages, and keeps them after the file is closed or replaced", function()
    safetensors.save(path, { t = support.tensor({ 1, 2 }, { 2 }) })
    local f = assert(safetensors.open(path))
    local t, twin = f:tensor "t", f:tensor "t"
    f:close()
    assert.equal(t.p.v.data, twin.p.v.data)
    C.weft_fill_(t.p, 7)
    assert.same({ 7, 7 }, (support.values(twin)))
    safetensors.save(path, { t = support.tensor({ 8, 9 }, { 2 }) })
    t:free()
    collectgarbage()
    assert.same({ 7, 7 }, (support.values(twin)))
    assert.same({ 8, 9 }, (support.values(safetensors.load(path).t)))
  end)

  it("copies tensors that lie askew in the file", function()
    support.write(path, file_of('{"t":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}} ', "\0\0\128\63"))
    assert.same({ 1 }, (support.values(safetensors.load(path).t)))
  end)

  it("lists what it cannot load, and refuses it by name", function()
    support.write(path, file_of('{"x":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[0,2]}}', "ab"))
    local f = assert(safetensors.open(path))
    assert.same({ shape = { 2 }, dtype = "F8_E4M3", nbytes = 2 }, f:info "x")
    local t, message = f:tensor "x"
    assert.is_nil(t)
    assert.matches("tensor 'x' has dtype F8_E4M3", message)
    assert.is_nil(f:info "y")
    assert.matches("no tensor 'xx'; did you mean x", select(2, f:tensor "xx"))
    f:close()
    assert.has_error(function() f:tensor "x" end)
  end)

  local one = '{"t":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
  local data = ("\0"):rep(8)
  local damaged = {
    { "a header longer than allowed", le(100000001, 8) .. one .. data, "header of 100000001 bytes" },
    { "a header longer than the file", le(4000, 8) .. one .. data, "truncated" },
    { "too few bytes", "abc", "3 bytes are too few" },
    { "no header", le(0, 8), "no header" },
    { "a header that is no object", file_of "[1,2]   ", "no header" },
    { "a header that is no JSON", file_of '{"t":', "not JSON" },
    { "a header that is not UTF-8", file_of('{"\255":1}'), "not JSON" },
    { "a duplicate name", file_of('{"t":1,"t":2}'), "duplicate" },
    { "a truncated tensor", file_of(one, data:sub(2)), "tensor 't' at bytes 0 to 8 lies outside" },
    { "bytes at the end", file_of(one, data .. "x"), "1 bytes at its end" },
    { "an unknown dtype", file_of('{"t":{"dtype":"F31","shape":[2],"data_offsets":[0,8]}}', data), "'F31'" },
    { "a missing dtype", file_of('{"t":{"shape":[2],"data_offsets":[0,8]}}', data), "'t' has no dtype" },
    { "a missing shape", file_of('{"t":{"dtype":"F32","data_offsets":[0,8]}}', data), "'t' has no shape" },
    { "missing offsets", file_of('{"t":{"dtype":"F32","shape":[2]}}', data), "data_offsets" },
    { "a negative size", file_of('{"t":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}', data), "non%-negative" },
    { "a fractional size", file_of('{"t":{"dtype":"F32","shape":[2.0],"data_offsets":[0,8]}}', data), "non%-negative" },
    { "a shape that overflows", file_of('{"t":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8]}}',
      data), "too large" },
    { "bytes that overflow", file_of('{"t":{"dtype":"F32","shape":[4611686018427387905],"data_offsets":[0,8]}}',
      data), "do not fit" },
    { "a shape of another size", file_of('{"t":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}', data),
      "8 bytes of data do not fit" },
    { "offsets in reverse", file_of('{"t":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}', data), "lies outside" },
    { "a negative offset", file_of('{"t":{"dtype":"F32","shape":[2],"data_offsets":[-8,0]}}', data), "lies outside" },
    { "an overlap", file_of('{"t":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"u":{"dtype":"F32","shape":[1],'
      .. '"data_offsets":[2,6]},"v":{"dtype":"U8","shape":[2],"data_offsets":[6,8]}}', data), "tensor 'u' at byte 2 overlaps" },
    { "two tensors on one place", file_of('{"t":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
      .. '"u":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', data), "overlaps" },
    { "a gap", file_of('{"t":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}', data), "4 bytes before tensor 't'" },
    { "metadata that is no object", file_of '{"__metadata__":[]}', "__metadata__" },
    { "metadata that is no string", file_of '{"__metadata__":{"a":1}}', "metadata 'a'" },
    { "a bool that is neither", file_of('{"t":{"dtype":"BOOL","shape":[1],"data_offsets":[0,1]}}', "\2"), "element 0 is 2" },
    { "too many dims", file_of('{"t":{"dtype":"U8","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,1]}}', "x"), "9 dims" },
  }
  for _, case in ipairs(damaged) do
    it("refuses " .. case[1], function() refused(case[2], case[3]) end)
  end

  it("says why a file cannot be opened", function()
    assert.matches("none.safetensors: No such file", select(2, safetensors.load(dir .. "none.safetensors")))
    assert.matches("not a regular file", select(2, safetensors.load(dir)))
  end)

  it("leaves the old file, and nothing else, when the disk is full", function()
    safetensors.save(path, { t = support.tensor({ 1, 2 }, { 2 }) })
    local before = support.read(path)
    local out = support.elsewhere("trap '' XFSZ; ulimit -f 8;", ([[
      local support = require "tests.io.support"
      local big = {}
      for i = 1, 20000 do big[i] = i end
      print(require("weft.io.safetensors").save(%q, { t = support.tensor(big, { 20000 }) }))
    ]]):format(path))
    assert.matches("^nil%s+.*t.safetensors: cannot write: File too large", out)
    assert.equal(before, support.read(path))
    local pipe = io.popen("ls '" .. dir .. "' | grep -c tmp")
    assert.equal("0", pipe:read "*l")
    pipe:close()
  end)

  it("refuses what it cannot write, by name", function()
    local t = support.tensor({ 1 }, { 1 })
    assert.has_error(function() safetensors.save(path, { ["__metadata__"] = t }) end)
    assert.has_error(function() safetensors.save(path, { ["\255"] = t }) end)
    assert.has_error(function() safetensors.save(path, { a = 1 }) end)
    assert.has_error(function() safetensors.save(path, { a = t }, { k = 1 }) end)
    assert.is_nil((safetensors.save(dir .. "no/such/t.safetensors", { a = t })))
    assert.is_nil((safetensors.save("/dev/null", { a = t })))
  end)

  it("writes through a link without replacing it", function()
    safetensors.save(path, { t = support.tensor({ 1 }, { 1 }) })
    os.execute(("ln -sf t.safetensors '%slink.safetensors'"):format(dir))
    assert.is_true(safetensors.save(dir .. "link.safetensors", { t = support.tensor({ 5 }, { 1 }) }))
    assert.same({ 5 }, (support.values(safetensors.load(path).t)))
  end)
end)
