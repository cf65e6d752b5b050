-- mutations_spec.lua: what tests/cuda/mutate would break is still there to be broken, and the tests that it
-- would ask are there too.
local list = require "tests.cuda.mutations"

local function text_of(path)
  local f = io.open(path, "rb")
  local text = f and f:read "*a"
  if f then f:close() end
  return text
end

describe("the mutations of the GPU's kernels", function()
  it("number at least 20, and none is there twice", function()
    local seen = {}
    for _, m in ipairs(list) do
      local name = m[1] .. ": " .. m[2]
      assert.is_nil(seen[name], name)
      seen[name] = true
    end
    assert.is_true(#list >= 20)
  end)

  it("find their text, and change it", function()
    for _, m in ipairs(list) do
      local text, at = assert(text_of(("cuda/%s.cu"):format(m[1])), m[1]), 0
      for _ = 1, m.nth or 1 do
        at = text:find(m[3], at + 1, true)
        assert(at, ("%s: %s: its text is in the file no more"):format(m[1], m[2]))
      end
      assert.is_true(m[3] ~= m[4])
    end
  end)

  it("ask tests that are there", function()
    for _, m in ipairs(list) do
      for _, test in ipairs(m[5]) do
        for word in test:gmatch "%S+" do
          local path = word:find "/" and word or ("tests/ops/cases/%s.lua"):format(word)
          assert(text_of(path), path)
        end
      end
    end
  end)
end)
