-- likeness_spec.lua: how alike captions are, by numbers worked out by hand, and what the contrastive loss makes of it.
local weft = require "weft"
local compare = require "tests.models.compare"
local ITC, Likeness = require "weft.losses.itc", require "weft.losses.likeness"

-- tokens 0 (padding), 1 (in every caption), 2, 3, 4
local LISTS = { { 1, 2 }, { 1, 2, 3 }, { 1, 3, 3 }, { 1, 4 } }
local function counted()
  return require("weft.data.captioned").new({ { ids = LISTS[1] }, { ids = LISTS[2] }, { ids = LISTS[3] }, { ids = LISTS[4] } }, {}):count_tokens()
end
local function padded()
  local ids, mask = {}, {}
  for r, list in ipairs(LISTS) do
    ids[r], mask[r] = {}, {}
    for k = 1, 4 do ids[r][k], mask[r][k] = list[k] or 0, list[k] and 1 or 0 end
  end
  return weft.tensor(ids, { dtype = "int64" }), weft.tensor(mask):to "bool"
end

describe("likeness of captions", function()
  it("is the cosine of tf-idf", function()
    local got = Likeness(5):weigh(counted())(padded())
    local w2, w3, w4 = math.log(2), math.log(2), math.log(4)
    local bags = { { w2, 0, 0 }, { w2, w3, 0 }, { 0, 2 * w3, 0 }, { 0, 0, w4 } }
    local want = {}
    for i = 1, 4 do
      want[i] = {}
      for j = 1, 4 do
        local dot, a, b = 0, 0, 0
        for k = 1, 3 do dot, a, b = dot + bags[i][k] * bags[j][k], a + bags[i][k] ^ 2, b + bags[j][k] ^ 2 end
        want[i][j] = dot / math.sqrt(a * b)
      end
    end
    compare.close(got, weft.tensor(want), 1e-6, "likeness")
    assert.is_false(got.requires_grad)
  end)

  it("is nothing between captions of common words alone", function()
    local one = Likeness(3):weigh({ 2, 1 }, 2)
    local got = one(weft.tensor({ { 1 }, { 1 } }, { dtype = "int64" }), weft.ones { 2, 1, dtype = "bool" })
    assert.same({ { 0, 0 }, { 0, 0 } }, got:totable())
  end)

  it("takes its share of the targets, over the batch alone and never where captions are equal", function()
    local function unit(x) return (weft.normalize(weft.tensor(x))) end
    local f = { image = unit { { 1, 0 }, { .5, 1 }, { 1, 1 } }, text = unit { { 0, 1 }, { 1, .2 }, { -1, 1 } }, tau = weft.full { value = .5 },
      ids = weft.tensor({ 1, 2, 3 }, { dtype = "int64" }), captions = weft.tensor({ 7, 8, 7 }, { dtype = "int64" }),
      queue_ids = weft.tensor({ 9 }, { dtype = "int64" }), queue_captions = weft.tensor({ 9 }, { dtype = "int64" }),
      queue_image = unit { { 1, -1 } }, queue_text = unit { { -1, 0 } },
      likeness = weft.tensor { { 1, .3, 1 }, { .3, 1, .3 }, { 1, .3, 1 } }, like = 0.4, like_tau = 0.2 }
    f.image_keys, f.text_keys = f.image, f.text
    local pair = ITC.pair_loss(f, 0)
    local e = math.exp
    local a, b = e(1 / .2), e(.3 / .2)
    local s = a + b            -- rows 1 and 3: the other one has their caption and is left out
    local t = a + 2 * b
    local want = { { .6 + .4 * a / s, .4 * b / s, 0, 0 }, { .4 * b / t, .6 + .4 * a / t, .4 * b / t, 0 }, { 0, .4 * b / s, .6 + .4 * a / s, 0 } }
    compare.close(pair.target_i2t, weft.tensor(want), 1e-6, "targets")
    compare.close(pair.target_t2i, weft.tensor(want), 1e-6, "targets")
    f.likeness = nil
    assert.same({ 1, 0, 0, 0 }, ITC.pair_loss(f, 0).target_i2t[1]:totable())
  end)

  it("must be given where it has a share", function()
    local head = ITC { image = 2, text = 2, dim = 2, like = 0.5 }:initialize(1)
    assert.error_matches(function()
      head(weft.ones { 2, 2 }, weft.ones { 2, 2 }, { image_ids = { 1, 2 }, caption_ids = { 1, 2 } })
    end, "like is above 0, and no likeness")
  end)
end)
