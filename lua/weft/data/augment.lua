-- augment.lua: what makes a picture differ from one epoch to the next: mirrored, cut at random. Draws
-- are keyed by seed, epoch and place, so nothing that ran before shifts them.
local random = require "weft.random"
local ops = require("weft.ops").functions

local M = {}

-- Most that a random cut's shape leaves that of the picture, as a ratio of sides.
local RATIO = 4 / 3

---Do pictures change from epoch to epoch, in this epoch?
---@param o table  flip, random_crop, vary_after: epochs in which pictures are whole all the same
---@param epoch? integer  from 1; none: in any epoch
function M.varies(o, epoch) return (o.flip or o.random_crop < 1) and (epoch or math.huge) > o.vary_after end

---That in words, for the start table; nil where pictures stay as they are.
function M.note(o)
  if not M.varies(o) then return nil end
  return ("pictures are %s%s%s anew in every epoch%s"):format(o.flip and "mirrored" or "", o.flip and o.random_crop < 1 and " and " or "",
    o.random_crop < 1 and ("cut to %.0f .. 100 %% of their area"):format(100 * o.random_crop) or "",
    o.vary_after > 0 and (o.vary_after > 1 and " but the first " .. o.vary_after or " but the first") or "")
end

local function draws(name, seed, epoch, at, n, k)
  local t = ops.rand({ n, k }, "float32", "cpu", { key = random.hash(name, seed), counter = 0ULL + epoch * 2 ^ 20 + at })
  local rows = t:totable()
  t:free()
  return rows
end

-- A window of a square picture: a share of its area from least to 1, sides up to RATIO apart.
local function window(size, least, u)
  local area = size * size * (least + (1 - least) * u[1])
  local ratio = math.exp((2 * u[2] - 1) * math.log(RATIO))
  local h = math.max(1, math.min(size, math.floor(math.sqrt(area / ratio) + 0.5)))
  local w = math.max(1, math.min(size, math.floor(math.sqrt(area * ratio) + 0.5)))
  return { 1 + math.floor(u[3] * (size - h + 1)), 1 + math.floor(u[4] * (size - w + 1)), h, w }
end

---What is done to the pictures of a batch: a list of { flip, window } by row.
---@param o table  size, flip, random_crop: least share of a picture's area that a cut keeps, 1 for no cut
---@param n integer  rows
---@return table[]
function M.draw(o, seed, epoch, at, n)
  local flips = o.flip and draws("flip", seed, epoch, at, n, 1)
  local cuts = o.random_crop < 1 and draws("random crop", seed, epoch, at, n, 4)
  local out = {}
  for b = 1, n do
    out[b] = { flip = flips and flips[b][1] < 0.5 or false, window = cuts and window(o.size, o.random_crop, cuts[b]) or nil }
  end
  return out
end

return M
