-- damaged_spec.lua: model and adapter directories that are broken in one way each: one clear error, and nothing is
-- changed. Run under the sanitizers too.
local weft = require "weft"
local run = require "tests.support.command"
local compare = require "tests.models.compare"
local files = require "weft.files"
local json = require "weft.io.json"
local safetensors = require "weft.io.safetensors"
local dinov2 = require "weft.models.dinov2"
local peft = weft.peft

local golden = "tests/golden/dinov2_mlp"
local adapter = "tests/golden/lora/plain"

local function u64(n)
  local out = {}
  for i = 1, 8 do
    out[i] = string.char(n % 256)
    n = math.floor(n / 256)
  end
  return table.concat(out)
end

local function with_header(header, data) return u64(#header) .. header .. (data or "") end

describe("a model directory with", function()
  local folder, remove
  setup(function() folder, remove = run.folder() end)
  teardown(function() remove() end)

  local whole = files.read(golden .. "/model.safetensors")
  local n_header = 0
  for i = 8, 1, -1 do n_header = n_header * 256 + whole:byte(i) end
  local header, data = whole:sub(9, 8 + n_header), whole:sub(9 + n_header)
  local first = header:match '"embeddings.cls_token":{[^}]*}'

  local cases = {
    { "a truncated header", whole:sub(1, 100), "truncated: its header has" },
    { "a header cut to nothing", whole:sub(1, 8), "truncated: its header has" },
    { "no bytes at all", "", "too few for a safetensors file" },
    { "a header longer than the file", u64(2 ^ 40) .. header,
      "no safetensors file, or a damaged one: a header of 1099511627776 bytes is more than a safetensors file may have" },
    { "a header that is no JSON", with_header("{\"a\": ", data), "its header is not JSON" },
    { "less data than it says", whole:sub(1, -9), "lies outside the file's" },
    { "more data than it says", whole .. ("\0"):rep(8), "8 bytes at its end belong to no tensor" },
    { "overlapping tensors", with_header('{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}',
      ("\0"):rep(12)), "overlaps another one" },
    { "a length that does not fit its shape", with_header('{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}', ("\0"):rep(8)), "do not fit its shape" },
    { "offsets backwards", with_header('{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}', ("\0"):rep(8)), "at bytes 8 to 0 lies outside" },
    { "a huge shape", with_header('{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,8]}}', ("\0"):rep(8)), "its shape is too large" },
    { "a shape whose product wraps around to nothing",
      with_header('{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}'), "its shape is too large" },
    { "a size below zero", with_header('{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}', ("\0"):rep(4)), "is not a non-negative integer" },
    { "a dtype that nobody knows", with_header('{"a":{"dtype":"Q3","shape":[1],"data_offsets":[0,4]}}', ("\0"):rep(4)), "unknown dtype 'Q3'" },
    { "a tensor of another shape", with_header((header:gsub('("embeddings.cls_token":{[^}]*"shape":)%[[^%]]*%]', "%1[48]")), data), "cls_token" },
    { "a tensor of another name", with_header((header:gsub("embeddings.cls_token", "embeddings.cls_tokem")), data), "cls_tokem" },
  }
  for i, case in ipairs(cases) do
    it(case[1], function()
      assert(first, "the golden's header has another form")
      local dir = ("%s/%d"):format(folder, i)
      assert(files.make_dirs(dir))
      assert(os.execute(("cp %s/config.json %s/"):format(golden, dir)) == 0)
      assert(files.write(dir .. "/model.safetensors", case[2]))
      local ok, message = pcall(dinov2.from_pretrained, dir)
      assert.is_false(ok)
      assert.truthy(message:find(dir, 1, true), message)
      assert.truthy(message:find(case[3], 1, true), message)
      assert.is_nil(message:find("attempt to", 1, true), message)
    end)
  end

  it("NaN or Infinity in its config.json", function()
    for _, word in ipairs { "NaN", "Infinity", "-Infinity", "1e999" } do
      local dir = folder .. "/nan"
      assert(os.execute(("mkdir -p %s && cp %s/model.safetensors %s/"):format(dir, golden, dir)) == 0)
      local text = files.read(golden .. "/config.json"):gsub('"layer_norm_eps": [^,]*', '"layer_norm_eps": ' .. word)
      assert(files.write(dir .. "/config.json", text))
      local ok, message = pcall(dinov2.from_pretrained, dir)
      assert.is_false(ok, word)
      assert.truthy(message:find("config.json", 1, true) or message:find("layer_norm_eps", 1, true), message)
    end
  end)

  it("nothing in it, or not there", function()
    local ok, message = pcall(dinov2.from_pretrained, folder .. "/nowhere")
    assert.is_false(ok)
    assert.matches("there is no such directory", message)
    assert(files.make_dirs(folder .. "/empty"))
    ok, message = pcall(dinov2.from_pretrained, folder .. "/empty")
    assert.is_false(ok)
    assert.matches("neither model.safetensors nor model.safetensors.index.json is there", message)
  end)
end)

describe("an adapter directory", function()
  local folder, remove, model, before
  local x = weft.randn { 1, 3, 28, 28 }
  setup(function()
    folder, remove = run.folder()
    model = dinov2.from_pretrained(golden)
    before = weft.no_grad(model, x).last_hidden_state:keep()
  end)
  teardown(function() remove() end)

  -- A copy of the golden adapter with changes, and the error of loading it on a model.
  local function refused(change, onto)
    local dir = folder .. "/adapter"
    os.execute(("rm -rf %s && cp -r %s %s"):format(dir, adapter, dir))
    local config, state = json.read(dir .. "/adapter_config.json"), assert(safetensors.load(adapter .. "/adapter_model.safetensors"))
    local raw = change(config, state, dir)
    assert(json.write(dir .. "/adapter_config.json", config))
    if raw then assert(files.write(dir .. "/adapter_model.safetensors", raw))
    else assert(safetensors.save(dir .. "/adapter_model.safetensors", state)) end
    local target = onto or model
    local ok, message = pcall(peft.load, target, dir)
    assert.is_false(ok)
    assert.truthy(message:find(dir, 1, true), message)
    assert.is_nil(message:find("attempt to", 1, true), message)
    assert.is_nil(peft.describe(target))
    if not onto then assert.is_true(compare.same(weft.no_grad(model, x).last_hidden_state, before)) end
    return message
  end

  it("of another model is refused by name and shape", function()
    local other = dinov2.new { size = "tiny" }
    local message = refused(function() end, other)
    assert.matches("query.lora_A.weight is %[%d+,48%], expected %[%d+,24%]", message)
    assert.matches("extra .*layer%.2%.", refused(function() end, dinov2.new { size = "tiny", hidden_size = 48, num_attention_heads = 4 }))
  end)

  it("whose rank is not that of its settings says so", function()
    assert.matches("the rank in the settings is 7", refused(function(config) config.r = 7 end))
  end)

  it("of another base is refused by its checksum, unless forced", function()
    local dir = folder .. "/base"
    local mine = dinov2.from_pretrained(golden)
    peft.lora(mine, { rank = 2 })
    peft.save(mine, dir)
    local other = dinov2.new(dinov2.from_pretrained(golden).config)
    local ok, message = pcall(peft.load, other, dir)
    assert.is_false(ok)
    assert.matches("trained on another base", message)
    assert.has_no.errors(function() peft.load(other, dir, { force = true }) end)
  end)

  it("with the names of both generations, and values that disagree, names one of them", function()
    local message = refused(function(_, state)
      local name = "base_model.model.encoder.layer.0.attention.attention.query.lora_B.weight"
      state["base_model.model.encoder.layer.0.attention.q_proj.lora_B.weight"] = state[name]:detach():clone() + 1
    end)
    assert.matches("layer%.0%.attention.*q[%w_]*%.lora_B%.weight: the names of the two generations hold different values", message)
    -- half of a module that is one here
    message = refused(function(_, state)
      state["base_model.model.encoder.layer.0.mlp.gate_proj.lora_B.bias"] = weft.ones { 4 }
    end)
    assert.matches("one of the gates alone", message)
  end)

  it("with a tensor too many, one too few, or none, says which", function()
    assert.matches("missing .*layer%.1.*lora_B", refused(function(_, state)
      state["base_model.model.encoder.layer.1.attention.attention.value.lora_B.weight"] = nil
    end))
    assert.matches("extra base_model%.model%.encoder%.layer%.9", refused(function(_, state)
      state["base_model.model.encoder.layer.9.attention.attention.value.lora_B.weight"] = weft.ones { 48, 4 }
    end))
    assert.matches("holds no tensor", refused(function() return with_header "{}" end))
  end)

  it("of a damaged file is refused like any", function()
    local bytes = files.read(adapter .. "/adapter_model.safetensors")
    assert.matches("adapter_model.safetensors", refused(function() return bytes:sub(1, 200) end))
    assert.matches("adapter_model.safetensors", refused(function() return bytes:sub(1, -5) end))
  end)

  it("with NaN in its settings or no settings at all is refused", function()
    local dir = folder .. "/nan"
    assert(os.execute(("cp -r %s %s"):format(adapter, dir)) == 0)
    local text = files.read(adapter .. "/adapter_config.json"):gsub('"lora_alpha": [^,]*', '"lora_alpha": NaN')
    assert(files.write(dir .. "/adapter_config.json", text))
    local ok, message = pcall(peft.load, model, dir)
    assert.is_false(ok)
    assert.matches("adapter_config.json", message)
    assert(os.remove(dir .. "/adapter_config.json"))
    ok, message = pcall(peft.load, model, dir)
    assert.is_false(ok)
    assert.matches("adapter_config.json", message)
  end)

  it("that computes something else is refused by the key", function()
    assert.matches("layer_replication is set", refused(function(config) config.layer_replication = json.array { json.array { 0, 2 } } end))
    assert.matches("peft_type LORA is expected, got IA3", refused(function(config) config.peft_type = "IA3" end))
    assert.matches("the key use_magic is not known", refused(function(config) config.use_magic = true end))
  end)
end)
