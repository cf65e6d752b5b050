-- together_spec.lua: encoder, compressor, fusion, memory and losses as one model: who sees whom, and
-- that every trainable tensor is reached.
local weft = require "weft"
local compare = require "tests.models.compare"
local nn, models, losses = weft.nn, weft.models, weft.losses

local Net = nn.Module "Net"
function Net:init()
  self.vision = models.dinov2.new "tiny"
  self.vision:freeze()
  self.compress = nn.Sequential(nn.Linear(24, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 8), nn.LayerNorm(8))
  self.language = models.llama { vocab = 30, width = 16, layers = 3, heads = 2, ff = 24 }
  self.fusion = models.fiber(self.language, { image_width = 8, image_heads = 2, image_hidden = 16 })
  self.memory = models.gpm { slots = 4, width = 8 }
  self.itc = losses.ITC { image = 8, text = 16, dim = 8 }
  self.itm = losses.ITM { width = 24 }
  self.queue = losses.Queue(6, { image = { 8 }, text = { 8 }, ids = { dtype = "int64" }, captions = { dtype = "int64" },
    tokens = { 6, dtype = "int64" }, mask = { 6, dtype = "bool" }, patches = { 4, 8, dtype = "bfloat16" } })
end

function Net:losses(b)
  local V = self.compress(self.vision(b.pixels).patches)
  local text = models.pool.last_token(self.fusion:encode(b.ids, { mask = b.mask }), b.mask)
  local pair = self.itc(V:mean(2), text, b, self.queue)
  local match = self.itm(function(v, ids, mask) return self.fusion:fuse(v, ids, { mask = mask }).feature end, V, pair, b, self.queue)
  self.queue:push { image = pair.keys.image, text = pair.keys.text, ids = pair.keys.ids, captions = pair.keys.captions,
    tokens = b.ids, mask = b.mask, patches = V }
  local z, kl = self.memory(V)
  return { itc = pair.loss, itm = match, lm = (self.fusion:caption(V, z, b.ids, { mask = b.mask })), memory = kl }
end

local function batch_of(first)
  local mask = weft.tensor({ { 1, 1, 1, 1, 1, 0 }, { 1, 1, 1, 0, 0, 0 }, { 1, 1, 1, 1, 0, 0 } }, { dtype = "bool" })
  local ids = { first, first + 1, first + 2 }
  return { pixels = weft.randn { 3, 3, 28, 28 }, ids = weft.randint { 3, 6, low = 3, high = 30 }, mask = mask,
    image_ids = ids, caption_ids = ids }
end

local function new()
  weft.manual_seed(6)
  local net = Net()
  net:assign_paths()
  return net:initialize(6)
end

describe("the whole model", function()
  it("reaches every trainable tensor by the third step, and moves nothing frozen", function()
    local net, before = new(), {}
    for name, t in net.vision:named_parameters() do before[name] = t:clone() end
    for step = 1, 3 do
      weft.scope(function()
        net:zero_grad()
        local l = net:losses(batch_of(step * 10))
        local total = l.itc + l.itm * 0.5 + l.lm + l.memory * 0.1
        assert.is_true(compare.finite(total))
        total:backward()
        net.queue:commit()
        if step == 1 then
          assert.equal(0, net.fusion.text[1].o_proj.weight.grad:abs():sum():item())
        elseif step == 3 then
          for name, t in net:named_parameters() do
            if t.requires_grad then assert.is_true(t.grad ~= nil and t.grad:abs():sum():item() > 0, name) end
          end
        end
        weft.no_grad(function()
          for _, t in net:named_parameters() do
            if t.requires_grad and t.grad then t:sub_(t.grad * 0.05) end
          end
        end)
      end)
    end
    for name, t in net.vision:named_parameters() do assert.is_true(compare.same(t, before[name]), name) end
    assert.equal(6, net.queue:filled())
  end)

  it("lets a caption's loss depend on its own picture alone when each has a memory of its own", function()
    local net = new():eval()
    weft.no_grad(function()
      for name, t in net:named_parameters() do
        if name:find "gate$" then t:fill_(0.8) end
      end
      local b = batch_of(1)
      local V = net.compress(net.vision(b.pixels).patches)
      local function loss(pictures, row)
        local z = net.memory(pictures)
        return net.fusion:caption(pictures:narrow(1, row, 1), z:narrow(1, row, 1), b.ids:narrow(1, row, 1), { mask = b.mask:narrow(1, row, 1) })
      end
      local other = V:clone()
      other[1]:mul_(-2)
      assert.is_true(compare.same(loss(V, 2), loss(other, 2)))
      assert.is_true(compare.error(loss(V, 1), loss(other, 1)) > 1e-5)
      -- together in one batch as alone
      local z = net.memory(V)
      local all = net.fusion:caption(V, z, b.ids, { mask = b.mask, reduction = "none" })
      compare.close(all:narrow(1, 5, 2):mean(), loss(V, 2), 1e-5)
    end)
  end)

  it("lets no text reach the memory", function()
    local net = new():eval()
    local b = batch_of(1)
    local V = net.compress(net.vision(b.pixels).patches)
    local z = net.memory(V)
    net.fusion:fuse(V, b.ids, { mask = b.mask })
    assert.is_true(compare.same((net.memory(V)), z))
    -- and nothing of it goes back into the memory but through the picture's code
    z:sum():backward()
    for name, t in net.language:named_parameters() do assert.is_nil(t.grad, name) end
  end)

  it("learns nothing new from a step in evaluation", function()
    local net = new()
    weft.scope(function() net:losses(batch_of(1)) end)
    net.queue:commit()
    local filled, skipped = net.queue:filled(), net.itm.skipped_rows
    net:eval()
    weft.scope(function() net:losses(batch_of(50)) end)
    net.queue:commit()
    assert.equal(filled, net.queue:filled())
    assert.equal(skipped, net.itm.skipped_rows)
  end)
end)
