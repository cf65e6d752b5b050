-- convert_spec.lua: adapters of one generation written for the other: the names and targets of that
-- generation, the values unchanged, and the golden outputs when read back.
local run = require "tests.support.command"
local weft = require "weft"
local compare = require "tests.models.compare"
local files = require "weft.files"
local json = require "weft.io.json"
local regex = require "weft.peft.regex"
local safetensors = require "weft.io.safetensors"
local dinov2 = require "weft.models.dinov2"
local peft = weft.peft

-- Paths that target_modules means among modules by their names in a generation, as PEFT would find them.
local function meant(config, newer)
  local found = {}
  for path, m in dinov2.from_pretrained("tests/golden/dinov2_mlp"):named_modules() do
    if m.type == "Linear" then
      local name = newer and require("weft.peft.dialect").newer(path) or path
      local targets, hit = config.target_modules, false
      if type(targets) == "string" then hit = regex.full(targets, name)
      else
        for _, t in ipairs(targets) do hit = hit or name == t or name:sub(-#t - 1) == "." .. t end
      end
      local layers = config.layers_to_transform
      if hit and type(layers) == "table" and next(layers) then
        local n, on = tonumber(name:match "layer%.(%d+)%."), false
        for _, layer in ipairs(layers) do on = on or n == layer end
        hit = on
      end
      if hit then found[#found + 1] = name end
    end
  end
  table.sort(found)
  return found
end

local function with_tensors(state)
  local found = {}
  for name in pairs(state) do
    local path = name:match "^base_model%.model%.(.*)%.lora_A%.weight$"
    if path then found[#found + 1] = path end
  end
  table.sort(found)
  return found
end

describe("an adapter converted", function()
  local folder, remove
  setup(function() folder, remove = run.folder() end)
  teardown(function() remove() end)

  local function check(from, name, which)
    local out = ("%s/%s-%s-%s"):format(folder, from, name, which)
    peft.convert(("tests/golden/%s/%s"):format(from, name), out, { dialect = which })
    local config, state = json.read(out .. "/adapter_config.json"), assert(safetensors.load(out .. "/adapter_model.safetensors"))
    local g = compare.golden("lora/" .. name .. "/io.safetensors")
    local model = peft.load(dinov2.from_pretrained "tests/golden/dinov2_mlp", out)
    compare.close(weft.no_grad(model:eval(), g.pixel_values).last_hidden_state, g.last_hidden_state, 1e-5, out)
    return config, state
  end

  for _, name in ipairs { "plain", "dora", "bias_all", "patterns", "all_linear", "saved", "regex", "layers" } do
    it("from transformers 4 has the names and targets of transformers 5: " .. name, function()
      local config, state = check("lora", name, "transformers5")
      assert.same(with_tensors(state), meant(config, true))
      assert.is_true(#with_tensors(state) > 0)
      for key in pairs(state) do assert.is_nil(key:find("attention.attention", 1, true), key) end
    end)
  end

  for _, name in ipairs { "plain", "dora", "bias_all", "patterns", "all_linear", "saved" } do
    it("from transformers 5 is what transformers 4 wrote: " .. name, function()
      local config, state = check("lora_transformers5", name, "transformers4")
      assert.same(with_tensors(state), meant(config, false))
      local theirs = assert(safetensors.load("tests/golden/lora/" .. name .. "/adapter_model.safetensors"))
      for key, t in pairs(theirs) do assert.same(t.shape, (state[key] or {}).shape, key) end
      for key in pairs(state) do assert.is_not_nil(theirs[key], key) end
      local known = json.read("tests/golden/lora/" .. name .. "/adapter_config.json")
      for key in pairs(config) do assert.is_not_nil(known[key], key) end
    end)
  end

  it("to both means the same modules in either generation", function()
    for _, from in ipairs { "lora", "lora_transformers5" } do
      for _, name in ipairs { "plain", "patterns", "all_linear" } do
        local config, state = check(from, name, "both")
        local all = meant(config, false)
        local seen = {}
        for _, path in ipairs(all) do seen[path] = true end
        for _, path in ipairs(meant(config, true)) do
          if not seen[path] then all[#all + 1] = path end
        end
        table.sort(all)
        assert.same(with_tensors(state), all)
      end
    end
  end)

  it("has patterns that mean a module in each generation, and none that mean nothing", function()
    for _, from in ipairs { "lora", "lora_transformers5" } do
      local config, state = check(from, "patterns", "both")
      for _, key in ipairs { "rank_pattern", "alpha_pattern" } do
        for pattern in pairs(config[key]) do
          local older, newer = false, false
          for _, path in ipairs(with_tensors(state)) do
            if regex.full("(?:.*\\.)?(?:" .. pattern .. ")", path) then
              if path:find "attention%.[qkvo]_proj" then newer = true else older = true end
              if path:find "mlp" then newer = true end
            end
          end
          assert.is_true(older and newer, pattern)
        end
      end
    end
  end)

  it("saves whole what ends in an entry, as PEFT does", function()
    local model = weft.models.llama.from_pretrained "tests/golden/llama_tiny"
    peft.lora(model, { targets = { "q_proj" }, rank = 2, modules_to_save = { "norm", "down_proj" } })
    assert.equal("SavedModule", model:get("model.layers.0.input_layernorm").type)
    peft.save(model, folder .. "/saved")
    local file = json.read(folder .. "/saved/adapter_config.json")
    assert.same({ "down_proj", "norm" }, file.modules_to_save)   -- a LLaMA's names are those of both generations
    assert.same({ "q_proj" }, file.target_modules)
    assert.has_no.errors(function() peft.load(weft.models.llama.from_pretrained "tests/golden/llama_tiny", folder .. "/saved") end)
  end)

  it("has fan_in_fan_out switched off for Linear, as PEFT does", function()
    local dir = folder .. "/fan"
    assert(os.execute(("cp -r tests/golden/lora/plain %s"):format(dir)) == 0)
    local config = json.read(dir .. "/adapter_config.json")
    config.fan_in_fan_out = true
    assert(json.write(dir .. "/adapter_config.json", config))
    local g = compare.golden "lora/plain/io.safetensors"
    local model = peft.load(dinov2.from_pretrained "tests/golden/dinov2_mlp", dir)
    compare.close(weft.no_grad(model:eval(), g.pixel_values).last_hidden_state, g.last_hidden_state, 1e-5)
  end)

  it("is written by the command, which says what it wants", function()
    local code, out, err = run.weft(("adapter convert tests/golden/lora/plain %s/cli --dialect transformers5"):format(folder))
    assert.equal(0, code, err)
    assert.matches("6 modules, by the names of transformers 5\n", out)
    local before = files.read(folder .. "/cli/adapter_config.json")
    local refused, _, why = run.weft(("adapter convert tests/golden/lora/plain %s/cli"):format(folder))
    assert.equal(1, refused)
    assert.matches("/cli holds an adapter already: name another folder, or remove it first\n", why)
    assert.equal(before, files.read(folder .. "/cli/adapter_config.json"))
    assert.equal(2, (run.weft "adapter"))
    code, out, err = run.weft(("adapter convert tests/golden/lora/plain %s/other --dialect transformers6"):format(folder))
    assert.equal(1, code)
    assert.equal("", out)
    assert.matches("did you mean", err)
    for from, expected in pairs { [folder .. "/nowhere"] = "there is no such directory",
      ["tests/golden/dinov2_mlp"] = "holds no adapter: there is no adapter_config.json in it" } do
      local status, _, text = run.weft(("adapter convert %s %s/other"):format(from, folder))
      assert.equal(1, status)
      assert.equal(("weft adapter: %s%s %s\n"):format(from, expected:find "holds" and "" or ":", expected), text)
    end
  end)

  it("loads and saves again under every name, from adapters of transformers 5", function()
    local model = peft.load(dinov2.from_pretrained "tests/golden/dinov2_mlp", "tests/golden/lora_transformers5/plain")
    peft.save(model, folder .. "/again")
    assert.same({ "q_proj", "query", "v_proj", "value" }, json.read(folder .. "/again/adapter_config.json").target_modules)
  end)
end)
