-- sort.lua: cases of topk and sort.

-- Lists along dim (a Lua position), with the places of their elements.
local function lists(x, dim)
  local n = #x.shape
  dim = dim < 0 and dim + n + 1 or dim
  local inner, size = 1, x.shape[dim]
  for d = dim + 1, n do inner = inner * x.shape[d] end
  local out = {}
  for start = 0, (size > 0 and #x.data / size or 0) - 1 do
    local from = math.floor(start / inner) * size * inner + start % inner
    local list = { outer = math.floor(start / inner), column = start % inner }
    for i = 0, size - 1 do list[i + 1] = { x.data[from + i * inner + 1], i } end
    out[#out + 1] = list
  end
  return out, dim, inner
end

local function ordered(x, dim, k, descending)
  local all, at, inner = lists(x, dim)
  local shape, values, indices = {}, {}, {}
  for d, size in ipairs(x.shape) do shape[d] = d == at and k or size end
  for _, list in ipairs(all) do
    table.sort(list, function(a, b)
      if a[1] ~= b[1] then
        if descending then return a[1] > b[1] end
        return a[1] < b[1]
      end
      return a[2] < b[2]
    end)
    for i = 0, k - 1 do
      local to = (list.outer * k + i) * inner + list.column + 1
      values[to], indices[to] = list[i + 1][1], list[i + 1][2]
    end
  end
  return { shape = shape, data = values }, { shape = shape, data = indices }
end

local function topk(ins, a) return ordered(ins[1], a[2] or -1, a[1], a[3] ~= false) end
local function sort(ins, a)
  local x, dim = ins[1], a[1] or -1
  return ordered(x, dim, x.shape[dim < 0 and dim + #x.shape + 1 or dim], a[2])
end

local M = {}

M.topk = {
  cases = function(g)
    local list = {}
    local function add(x, k, dim, largest, grad)
      list[#list + 1] = { inputs = { x, n = 1 }, attrs = { k, dim, largest, n = 3 }, reference = topk, grad = grad }
    end
    add(g.distinct { 9 }, 3)
    add(g.distinct { 4, 9 }, 2, -1, false)
    add(g.distinct { 9, 4 }, 3, 1)
    add(g.distinct { 2, 9, 3 }, 4, 2, true)
    add(g.distinct { 2, 5 }, 5)
    add(g.distinct { 2, 5 }, 0)
    add(g.distinct { 2, 1 }, 1)
    add(g.randn { 0, 5 }, 2)
    add(g.int({ 3, 200 }, 0, 9), 7)
    add(g.int({ 3, 200 }, 0, 9), 7, 2, false)
    add(g.distinct { 3, 5000 }, 10, 2, true, g.no_grad)   -- streamed; too many to perturb
    add(g.distinct { 3, 5000 }, 100, 2, true, g.no_grad)  -- sorted whole
    return list
  end,
  refuses = function(g)
    return {
      { inputs = { g.randn { 2, 3 }, n = 1 }, attrs = { 4, 2, true, n = 3 }, message = "k is 4, the dim has 3" },
      { inputs = { g.randn { 2, 3 }, n = 1 }, attrs = { -1, 2, true, n = 3 }, message = "k is %-1" },
    }
  end,
}

M.sort = {
  cases = function(g)
    local list = {}
    local function add(x, dim, descending, grad)
      list[#list + 1] = { inputs = { x, n = 1 }, attrs = { dim, descending, n = 2 }, reference = sort, grad = grad }
    end
    add(g.distinct { 9 })
    add(g.distinct { 3, 50 }, 2, true)
    add(g.distinct { 30, 3 }, 1)
    add(g.distinct { 2, 9, 3 }, -2, true)
    add(g.distinct { 1, 1 })
    add(g.randn { 3, 0 })
    add(g.int({ 3, 300 }, -4, 4), 2)            -- many equals: the order among them stays
    add(g.int({ 3, 300 }, -4, 4), 2, true)
    add(g.int({ 2, 3000 }, -40, 40), 2)         -- long enough for counting by bytes
    add(g.int({ 2, 3000 }, -40, 40), 2, true)
    add(g.distinct { 2, 3000 }, 2, false, g.no_grad)  -- too many to perturb
    return list
  end,
  refuses = function(g)
    return { { inputs = { g.randn { 2, 3 }, n = 1 }, attrs = { 3, false, n = 2 }, message = "dim 3 outside 1..2" } }
  end,
}

return M
