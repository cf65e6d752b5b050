-- index.lua: cases of reading and adding by index.
local function product(shape, from, to)
  local n = 1
  for d = from, to do n = n * shape[d] end
  return n
end

local function clone(t)
  local data = {}
  for i = 1, #t.data do data[i] = t.data[i] end
  return { shape = t.shape, data = data }
end

-- Dims reach references as Lua callers give them: from 1, or negative from the end.
local function real_dim(dim, shape) return dim < 0 and dim + #shape + 1 or dim end

-- Calls f(position in index, coordinates from 0) for each element of a shape.
local function each(shape, f)
  local n = product(shape, 1, #shape)
  for i = 0, n - 1 do
    local rest, at = i, {}
    for d = #shape, 1, -1 do
      at[d] = rest % shape[d]
      rest = math.floor(rest / shape[d])
    end
    f(i + 1, at)
  end
end

local function flat(shape, at)
  local offset = 0
  for d = 1, #shape do offset = offset * shape[d] + at[d] end
  return offset + 1
end

local function embedding(ins)
  local ids, weight = ins[1], ins[2]
  local width, data, shape = weight.shape[2], {}, {}
  for d, size in ipairs(ids.shape) do shape[d] = size end
  shape[#shape + 1] = width
  for k = 1, #ids.data do
    for c = 1, width do data[#data + 1] = weight.data[ids.data[k] * width + c] end
  end
  return { shape = shape, data = data }
end

local function embedding_backward(ins, attrs)
  local ids, dy = ins[1], ins[2]
  local width, data = dy.shape[#dy.shape], {}
  for i = 1, attrs[1] * width do data[i] = 0 end
  for k = 1, #ids.data do
    for c = 1, width do
      local at = ids.data[k] * width + c
      data[at] = data[at] + dy.data[(k - 1) * width + c]
    end
  end
  return { shape = { attrs[1], width }, data = data }
end

local function gather(ins, attrs)
  local x, index = ins[1], ins[2]
  local dim, data = real_dim(attrs[1], x.shape), {}
  each(index.shape, function(i, at)
    at[dim] = index.data[i]
    data[i] = x.data[flat(x.shape, at)]
  end)
  return { shape = index.shape, data = data }
end

local function scatter_add(ins, attrs)
  local y, index, src = clone(ins[1]), ins[2], ins[3]
  local dim = real_dim(attrs[1], y.shape)
  each(index.shape, function(i, at)
    at[dim] = index.data[i]
    local k = flat(y.shape, at)
    y.data[k] = y.data[k] + src.data[i]
  end)
  return y
end

local function index_select(ins, attrs)
  local x, index = ins[1], ins[2]
  local dim, data, shape = real_dim(attrs[1], x.shape), {}, {}
  for d, size in ipairs(x.shape) do shape[d] = d == dim and #index.data or size end
  each(shape, function(i, at)
    at[dim] = index.data[at[dim] + 1]
    data[i] = x.data[flat(x.shape, at)]
  end)
  return { shape = shape, data = data }
end

local function index_add(ins, attrs)
  local y, index, src = clone(ins[1]), ins[2], ins[3]
  local dim = real_dim(attrs[1], y.shape)
  each(src.shape, function(i, at)
    at[dim] = index.data[at[dim] + 1]
    local k = flat(y.shape, at)
    y.data[k] = y.data[k] + src.data[i]
  end)
  return y
end

local M = {}

M.embedding = {
  cases = function(g)
    local cases = {}
    local function add(ids, weight)
      cases[#cases + 1] = { inputs = { ids, weight, n = 2 }, attrs = { n = 0 },
        reference = embedding }
    end
    add(g.index({ 2, 3 }, 5), g.randn { 5, 4 })
    add(g.index({}, 5), g.randn { 5, 3 })
    add(g.index({ 0 }, 5), g.randn { 5, 3 })
    add(g.index({ 2, 0 }, 5), g.randn { 0, 3 })
    add(g.index({ 4 }, 1), g.randn { 1, 1 })
    add(g.index({ 3 }, 2), g.randn { 2, 0 })
    add(g.index({ 41, 7 }, 11), g.randn { 11, 67 })
    return cases
  end,
  refuses = function(g)
    return {
      { inputs = { g.int({ 3 }, 9, 10), g.randn { 5, 2 }, n = 2 }, attrs = { n = 0 },
        message = "id 9 outside 0%.%.4, position 1" },
      { inputs = { g.int({ 3 }, -1, 0), g.randn { 5, 2 }, n = 2 }, attrs = { n = 0 },
        message = "id %-1 outside 0%.%.4, position 1" },
      { inputs = { g.index({ 3 }, 2), g.randn { 5 }, n = 2 }, attrs = { n = 0 },
        message = "weight must be %[rows, width%]" },
      { inputs = { g.int({ 3 }, 0, 1), g.randn { 0, 2 }, n = 2 }, attrs = { n = 0 },
        message = "there is nothing to choose from" },
    }
  end,
}

M.embedding_backward = {
  cases = function(g)
    local cases = {}
    local function add(ids, dy, rows)
      cases[#cases + 1] = { inputs = { ids, dy, n = 2 }, attrs = { rows, n = 1 },
        reference = embedding_backward }
    end
    add(g.index({ 2, 3 }, 5), g.randn { 2, 3, 4 }, 5)
    add(g.index({}, 5), g.randn { 3 }, 5)
    add(g.index({ 0 }, 5), g.randn { 0, 3 }, 5)
    add(g.index({ 0 }, 5), g.randn { 0, 3 }, 0)
    add(g.index({ 9 }, 1), g.randn { 9, 1 }, 1)
    add(g.index({ 50 }, 3), g.randn { 50, 300 }, 400)
    return cases
  end,
  refuses = function(g)
    return {
      { inputs = { g.index({ 2, 3 }, 5), g.randn { 2, 3 }, n = 2 }, attrs = { 5, n = 1 },
        message = "dy must have one dim more than ids" },
      { inputs = { g.index({ 2, 3 }, 5), g.randn { 2, 4, 3 }, n = 2 }, attrs = { 5, n = 1 },
        message = "differ in dim 2 %(3 and 4%)" },
      { inputs = { g.int({ 2 }, 5, 6), g.randn { 2, 3 }, n = 2 }, attrs = { 5, n = 1 },
        message = "id 5 outside 0%.%.4" },
      { inputs = { g.index({ 2 }, 5), g.randn { 2, 3 }, n = 2 }, attrs = { -1, n = 1 },
        message = "rows must not be negative" },
    }
  end,
}

-- Shapes of x, shape of the index, dim.
local LINES = {
  { { 5 }, { 7 }, 1 }, { { 3, 4 }, { 3, 6 }, 2 }, { { 3, 4 }, { 2, 4 }, -2 },
  { { 3, 4, 5 }, { 2, 3, 4 }, 1 }, { { 3, 4, 5 }, { 2, 9, 4 }, 2 },
  { { 3, 4, 5 }, { 3, 4, 2 }, -1 },
  { { 1, 4 }, { 1, 1 }, 1 }, { { 3, 0 }, { 3, 0 }, 1 }, { { 0, 3 }, { 0, 2 }, 2 },
  { { 6, 601 }, { 40, 600 }, 1 }, { { 130, 20 }, { 130, 33 }, 2 },
}

M.gather = {
  cases = function(g)
    local cases = {}
    for _, line in ipairs(LINES) do
      local x, index, dim = line[1], line[2], line[3]
      cases[#cases + 1] = {
        inputs = { g.randn(x), g.index(index, x[real_dim(dim, x)]), n = 2 },
        attrs = { dim, n = 1 }, reference = gather,
      }
    end
    return cases
  end,
  refuses = function(g)
    return {
      { inputs = { g.randn { 3, 4 }, g.int({ 3, 2 }, 4, 5), n = 2 }, attrs = { 2, n = 1 },
        message = "index 4 outside 0%.%.3, position 1" },
      { inputs = { g.randn { 3, 4 }, g.index({ 4, 2 }, 4), n = 2 }, attrs = { 2, n = 1 },
        message = "index is larger than x in dim 1 %(4 and 3%)" },
      { inputs = { g.randn { 3, 4 }, g.index({ 3 }, 4), n = 2 }, attrs = { 2, n = 1 },
        message = "index must have the 2 dims of x" },
      { inputs = { g.randn { 3, 4 }, g.index({ 3, 2 }, 4), n = 2 }, attrs = { 3, n = 1 },
        message = "dim 3 outside" },
    }
  end,
}

M.scatter_add = {
  cases = function(g)
    local cases = {}
    for _, line in ipairs(LINES) do
      local x, index, dim = line[1], line[2], line[3]
      cases[#cases + 1] = {
        inputs = { g.randn(x), g.index(index, x[real_dim(dim, x)]), g.randn(index), n = 3 },
        attrs = { dim, n = 1 }, reference = scatter_add,
      }
    end
    return cases
  end,
  refuses = function(g)
    return {
      { inputs = { g.randn { 3, 4 }, g.int({ 3, 2 }, -2, -1), g.randn { 3, 2 }, n = 3 },
        attrs = { 2, n = 1 }, message = "index %-2 outside 0%.%.3, position 1" },
      { inputs = { g.randn { 3, 4 }, g.index({ 3, 2 }, 4), g.randn { 3, 3 }, n = 3 },
        attrs = { 2, n = 1 }, message = "src must have the shape of index" },
    }
  end,
}

-- Shape of x, length of the index, dim.
local ROWS = {
  { { 5 }, 3, 1 }, { { 5, 3 }, 7, 1 }, { { 5, 3 }, 2, -1 }, { { 2, 5, 3 }, 4, 2 },
  { { 5, 3 }, 0, 1 }, { { 0, 3 }, 0, 1 }, { { 0, 3 }, 2, 2 }, { { 1, 4 }, 3, 1 },
  { { 9, 301 }, 60, 1 }, { { 150, 20 }, 13, 2 },
}

M.index_select = {
  cases = function(g)
    local cases = {}
    for _, row in ipairs(ROWS) do
      local x, dim = row[1], real_dim(row[3], row[1])
      cases[#cases + 1] = {
        inputs = { g.randn(x), g.index({ row[2] }, math.max(x[dim], 1)), n = 2 },
        attrs = { row[3], n = 1 }, reference = index_select,
      }
    end
    return cases
  end,
  refuses = function(g)
    return {
      { inputs = { g.randn { 3, 4 }, g.int({ 2 }, 3, 4), n = 2 }, attrs = { 1, n = 1 },
        message = "index 3 outside 0%.%.2, position 1" },
      { inputs = { g.randn { 3, 4 }, g.index({ 2, 2 }, 3), n = 2 }, attrs = { 1, n = 1 },
        message = "index must be a vector" },
      { inputs = { g.randn {}, g.index({ 2 }, 1), n = 2 }, attrs = { 1, n = 1 },
        message = "0%-dim tensor has no dims" },
    }
  end,
}

M.index_add = {
  cases = function(g)
    local cases = {}
    for _, row in ipairs(ROWS) do
      local x, dim, src = row[1], real_dim(row[3], row[1]), {}
      for d, size in ipairs(x) do src[d] = d == dim and row[2] or size end
      cases[#cases + 1] = {
        inputs = { g.randn(x), g.index({ row[2] }, math.max(x[dim], 1)), g.randn(src), n = 3 },
        attrs = { row[3], n = 1 }, reference = index_add,
      }
    end
    return cases
  end,
  refuses = function(g)
    return {
      { inputs = { g.randn { 3, 4 }, g.int({ 2 }, 3, 4), g.randn { 2, 4 }, n = 3 },
        attrs = { 1, n = 1 }, message = "index 3 outside 0%.%.2, position 1" },
      { inputs = { g.randn { 3, 4 }, g.index({ 2 }, 3), g.randn { 3, 4 }, n = 3 },
        attrs = { 1, n = 1 }, message = "src must have size 2 in dim 1, got 3" },
    }
  end,
}

-- x, index and src, as they are after.
local function index_copy(ins)
  local x, index, src = clone(ins[1]), ins[2], ins[3]
  local width = product(x.shape, 2, #x.shape)
  for k = 1, #index.data do
    for c = 1, index.data[k] >= 0 and width or 0 do x.data[index.data[k] * width + c] = src.data[(k - 1) * width + c] end
  end
  return x, index, src
end

M.index_copy_ = {
  cases = function(g)
    local function case(x, index, src)
      return { inputs = { x, g.tensor(index, { dtype = "int64" }), src }, reference = index_copy, grad = g.no_grad }
    end
    return {
      case(g.randn { 5, 3 }, { 4, 0, 2 }, g.randn { 3, 3 }),
      case(g.randn { 4, 2, 4 }, { -1, 3, -7, 1 }, g.randn { 4, 2, 4 }),
      case(g.randn { 6 }, { 5, 3 }, g.randn { 2 }),
      case(g.randn { 3, 0 }, { 1 }, g.randn { 1, 0 }),
    }
  end,
  refuses = function(g)
    local function refuse(message, x, index, src)
      return { inputs = { x, index, src }, message = message }
    end
    return {
      refuse("index must be a vector", g.randn { 5, 3 }, g.index({ 2, 1 }, 5), g.randn { 2, 3 }),
      refuse("a row of x for each of the 2 indices", g.randn { 5, 3 }, g.index({ 2 }, 5), g.randn { 2, 4 }),
      refuse("a row of x for each of the 2 indices", g.randn { 5, 3 }, g.index({ 2 }, 5), g.randn { 3, 3 }),
      refuse("index 5 ", g.randn { 5, 3 }, g.tensor({ 1, 5 }, { dtype = "int64" }), g.randn { 2, 3 }),
    }
  end,
}

return M
