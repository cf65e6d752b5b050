-- pos_interp_spec.lua: position tables resized by the three rules, against the field's own.
local weft = require "weft"
local compare = require "tests.models.compare"
local pos_interp = require "weft.models.pos_interp"

local golden = compare.golden "pos_interp.safetensors"
local grids = { { 16, 16 }, { 16, 20 }, { 23, 9 }, { 45, 45 }, { 37, 36 } }

describe("pos_interp", function()
  for _, rule in ipairs { "size", "antialias", "offset" } do
    it("resizes by " .. rule .. " as the field does", function()
      for _, grid in ipairs(grids) do
        local name = ("%s.%dx%d"):format(rule, grid[1], grid[2])
        local got = pos_interp.resize(golden.table, grid[1], grid[2], rule)
        compare.close(got:narrow(2, 2, grid[1] * grid[2]), golden[name], 5e-6, name)
        assert.is_true(compare.same(got:narrow(2, 1, 1), golden.table:narrow(2, 1, 1)))
      end
    end)
  end

  describe("for pictures of many sizes", function()
    local sizes = compare.golden "pos_interp_sizes.safetensors"
    local dinov2 = require "weft.models.dinov2"

    -- Every 11th of a dim, and the last.
    local function some(n)
      local list = {}
      for i = 0, n - 1, 11 do list[#list + 1] = i end
      if list[#list] ~= n - 1 then list[#list + 1] = n - 1 end
      return weft.tensor(list, { dtype = "int64" })
    end

    for name, expected in pairs(sizes) do
      local rule, height, width = name:match "^(%a+)%.(%d+)x(%d+)$"
      if rule then
        it(("are those of the field: %s x %s by %s"):format(height, width, rule), function()
          local model = dinov2.new { hidden_size = 2, num_attention_heads = 1, num_hidden_layers = 1, pos_interp = rule }:freeze()
          weft.no_grad(function()
            for _, t in model:named_parameters() do t:fill_(0) end
            model.embeddings.position_embeddings:copy_(sizes.table)
          end)
          -- with all else zero, what comes out of the embeddings is the table
          local h, w = height / 14, width / 14
          local out, grid = weft.no_grad(model.embeddings, weft.zeros { 1, 3, tonumber(height), tonumber(width) })
          assert.same({ h = h, w = w }, grid)
          local got = weft.index_select(weft.index_select(out:narrow(2, 2, h * w):reshape(h, w, 2), some(h), 1), some(w), 2)
          compare.close(got, expected, 5e-6, name)
        end)
      end
    end
  end)

  it("tells the rules apart", function()
    local a = pos_interp.resize(golden.table, 16, 16, "size")
    for _, rule in ipairs { "antialias", "offset" } do
      assert.is_true(compare.error(pos_interp.resize(golden.table, 16, 16, rule), a) > 1e-2)
    end
  end)

  it("leaves the table as it is at its own grid", function()
    assert.is_true(pos_interp.resize(golden.table, 37, 37, "offset") == golden.table)
  end)

  it("passes gradients to the table", function()
    local t = weft.randn { 1, 10, 4, dtype = "float64", requires_grad = true }
    for rule in pairs(pos_interp.rules) do
      assert.is_true(weft.gradcheck(function(x) return pos_interp.resize(x, 2, 5, rule) end, { t }))
    end
  end)

  it("refuses an unknown rule and names the near one", function()
    local ok, message = pcall(pos_interp.resize, golden.table, 4, 4, "antialis")
    assert.is_false(ok)
    assert.matches("did you mean antialias", message)
  end)
end)
