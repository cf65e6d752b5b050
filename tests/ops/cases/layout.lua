-- layout.lua: cases of views and of what moves elements.
local plain = require "tests.support.plain"
local fill, get, numel = plain.fill, plain.get, plain.numel

local M = {}

local function from_end(dim, n) return dim < 0 and dim + n + 1 or dim end
local function copy(list) return { unpack(list) } end
local function but(list, k, v)
  local out = copy(list)
  out[k] = v
  return out
end

-- list of { shape, attribute, ... } to cases
local function cases(reference, rows)
  return function(g)
    local list = {}
    for i, row in ipairs(rows) do
      local attrs = { n = #row - 1 }
      for k = 2, #row do attrs[k - 1] = row[k] end
      list[i] = { inputs = { g.randn(row[1]) }, attrs = attrs, reference = reference }
    end
    local attrs = { n = #rows[1] - 1 }
    for k = 2, #rows[1] do attrs[k - 1] = rows[1][k] end
    for _, dtype in ipairs { "int64", "int32", "uint8", "bool", "bfloat16", "float16" } do
      list[#list + 1] = { inputs = { g.int(rows[1][1], 0, 2):to(dtype) }, attrs = attrs,
      reference = reference }
    end
    return list
  end
end
local function refusals(rows)
  return function(g)
    local list = {}
    for i, row in ipairs(rows) do
      list[i] = { inputs = { g.randn(row[1]) }, attrs = { unpack(row, 2, #row - 1) },
                  message = row[#row] }
    end
    return list
  end
end

M.reshape = {
  cases = cases(function(ins, attrs)
    local shape, known = copy(attrs[1]), 1
    for _, s in ipairs(shape) do if s ~= -1 then known = known * s end end
    for d, s in ipairs(shape) do if s == -1 then shape[d] = #ins[1].data / known end end
    return { shape = shape, data = ins[1].data }
  end, {
    { { 3, 4 }, { 2, 6 } }, { { 3, 4 }, { -1 } }, { {}, { 1, 1 } }, { { 1 }, {} },
    { { 2, 3, 4 }, { 6, -1 } }, { { 0, 3 }, { 3, 0 } }, { { 2, 6 }, { 2, 2, 1, 3 } },
    { { 4, 6 }, { 2, 2, 6 } }, { { 12 }, { 3, -1, 2 } },
  }),
  refuses = refusals {
    { { 3, 4 }, { 5, 2 }, "holds 10 elements, x 12" }, { { 3, 4 }, { -1, -1 }, "both %-1" },
    { { 3, 4 }, { 5, -1 }, "can't be split" }, { { 0 }, { 0, -1 }, "can't be split" },
    { { 4 }, { -2, -2 }, "out of range" },
  },
}

M.permute = {
  cases = cases(function(ins, attrs)
    local x, dims, shape = ins[1], {}, {}
    for d, from in ipairs(attrs[1]) do
      dims[d] = from_end(from, #x.shape)
      shape[d] = x.shape[dims[d]]
    end
    return fill(shape, function(place)
      local at = {}
      for d, from in ipairs(dims) do at[from] = place[d] end
      return get(x, at)
    end)
  end, {
    { { 2, 3, 4 }, { 3, 1, 2 } }, { { 2, 3 }, { -1, 1 } }, { {}, {} }, { { 5 }, { 1 } },
    { { 2, 0, 3 }, { 2, 3, 1 } }, { { 2, 1, 3, 2 }, { 4, 2, 1, 3 } },
  }),
  refuses = refusals {
    { { 2, 3 }, { 1, 1 }, "listed twice" }, { { 2, 3 }, { 1 }, "1 dims are listed" },
    { { 2, 3 }, { 1, 3 }, "dim 3 outside" },
  },
}

M.transpose = {
  cases = cases(function(ins, attrs)
    local x, n = ins[1], #ins[1].shape
    local a, b = from_end(attrs[1] or -2, n), from_end(attrs[2] or -1, n)
    local shape = but(but(x.shape, a, x.shape[b]), b, x.shape[a])
    return fill(shape, function(place) return get(x, but(but(place, a, place[b]), b, place[a])) end)
  end, {
    { { 2, 3, 4 }, 1, 3 }, { { 2, 3 } }, { { 2, 3, 4 }, -1, 1 }, { { 3 }, 1, 1 },
    { { 2, 0 }, 1, 2 },
  }),
  refuses = refusals { { { 3 }, "outside 1..1" }, { {}, "0%-dim" } },
}

M.narrow = {
  cases = cases(function(ins, attrs)
    local x, dim = ins[1], from_end(attrs[1], #ins[1].shape)
    local start = from_end(attrs[2], x.shape[dim])
    return fill(but(x.shape, dim, attrs[3]), function(place)
      return get(x, but(place, dim, place[dim] + start - 1))
    end)
  end, {
    { { 3, 5 }, 2, 2, 3 }, { { 3, 5 }, 1, 1, 3 }, { { 3, 5 }, -1, -2, 2 }, { { 4 }, 1, 4, 1 },
    { { 4, 2 }, 1, 2, 0 }, { { 2, 3, 4 }, 2, 3, 1 }, { { 0, 3 }, 2, 1, 2 },
  }),
  refuses = refusals {
    { { 3, 5 }, 2, 4, 3, "dim 2 of size 5" }, { { 3, 5 }, 3, 1, 1, "dim 3 outside" },
    { { 3 }, 1, 1, -1, "don't lie in dim 1" },
  },
}

M.select = {
  cases = cases(function(ins, attrs)
    local x, dim = ins[1], from_end(attrs[1], #ins[1].shape)
    local shape, at = copy(x.shape), from_end(attrs[2], x.shape[dim])
    table.remove(shape, dim)
    return fill(shape, function(place)
      local full = copy(place)
      table.insert(full, dim, at)
      return get(x, full)
    end)
  end, {
    { { 3, 5 }, 1, 2 }, { { 3, 5 }, -1, -1 }, { { 4 }, 1, 3 }, { { 2, 3, 4 }, 2, 1 },
    { { 0, 3 }, 2, 2 },
  }),
  refuses = refusals {
    { { 3, 5 }, 1, 4, "position 4 outside 1..3" }, { { 3, 5 }, 1, -4, "position %-4 outside" },
    { {}, 1, 1, "0%-dim" },
  },
}

M.expand = {
  cases = cases(function(ins, attrs)
    local x, shape = ins[1], copy(attrs[1])
    for d, s in ipairs(shape) do if s == -1 then shape[d] = x.shape[d - (#shape - #x.shape)] end end
    local data = {}
    for i = 0, numel(shape) - 1 do data[i + 1] = x.data[plain.at(x, shape, i)] end
    return { shape = shape, data = data }
  end, {
    { { 3, 1 }, { 3, 4 } }, { { 3, 1 }, { 2, -1, 4 } }, { {}, { 2, 2 } }, { { 1 }, { 0 } }, { { 0, 1 }, { 2, 0, 3 } },
    { { 2, 3 }, { 2, 3 } }, { { 1, 2, 1 }, { 3, 2, 2 } },
  }),
  refuses = refusals {
    { { 3, 2 }, { 3, 4 }, "size 2 of dim 2 can't become 4" },
    { { 3, 2 }, { 2 }, "x has 2 dims" }, { { 3 }, { -1, 3 }, "can't become %-1" },
  },
}

M.squeeze = {
  cases = cases(function(ins, attrs)
    local shape = copy(ins[1].shape)
    table.remove(shape, from_end(attrs[1], #shape))
    return { shape = shape, data = ins[1].data }
  end, { { { 3, 1, 2 }, 2 }, { { 3, 1 }, -1 }, { { 1 }, 1 }, { { 1, 0 }, 1 } }),
  refuses = refusals { { { 3, 2 }, 1, "dim 1 has size 3" }, { {}, 1, "0%-dim" } },
}

M.unsqueeze = {
  cases = cases(function(ins, attrs)
    local shape = copy(ins[1].shape)
    table.insert(shape, from_end(attrs[1], #shape + 1), 1)
    return { shape = shape, data = ins[1].data }
  end, { { { 3, 2 }, 2 }, { { 3, 2 }, -1 }, { { 3, 2 }, 1 }, { {}, 1 }, { { 0 }, 2 } }),
  refuses = refusals {
    { { 3, 2 }, 4, "dim 4 outside 1..3" }, { { 1, 1, 1, 1, 1, 1, 1, 1 }, 1, "9 dims" },
  },
}

M.unfold = {
  cases = cases(function(ins, attrs)
    local x, dim = ins[1], from_end(attrs[1], #ins[1].shape)
    local size, step = attrs[2], attrs[3]
    local shape = but(x.shape, dim, math.floor((x.shape[dim] - size) / step) + 1)
    shape[#shape + 1] = size
    return fill(shape, function(place)
      local at = copy(place)
      at[dim] = (place[dim] - 1) * step + place[#place]
      at[#place] = nil
      return get(x, at)
    end)
  end, {
    { { 7, 3 }, 1, 3, 2 }, { { 2, 9 }, -1, 4, 1 }, { { 5 }, 1, 5, 1 }, { { 6 }, 1, 2, 3 },
    { { 8, 2, 2 }, 1, 3, 5 }, { { 0, 4 }, 2, 2, 1 },
  }),
  refuses = refusals {
    { { 4 }, 1, 5, 1, "don't fit dim 1 of size 4" }, { { 4 }, 1, 2, 0, "don't fit" },
    { { 4 }, 1, 0, 1, "don't fit" },
  },
}

local function same(ins) return ins[1] end
M.contiguous = {
  cases = cases(same, {
    { { 3, 5 } }, { {} }, { { 0, 3 } }, { { 2, 1, 4 } }, { { 71, 37 } }, { { 3, 65, 18 } },
  }),
}

M.flip = {
  cases = cases(function(ins, attrs)
    local x = ins[1]
    return fill(x.shape, function(place)
      local at = copy(place)
      for _, d in ipairs(attrs[1]) do
        d = from_end(d, #x.shape)
        at[d] = x.shape[d] + 1 - at[d]
      end
      return get(x, at)
    end)
  end, {
    { { 3, 5 }, { 2 } }, { { 3, 5 }, { 1, -1 } }, { { 3 }, {} }, { { 2, 3, 4 }, { 2 } },
    { { 0, 3 }, { 1, 2 } }, { {}, {} }, { { 2, 70 }, { 2 } },
  }),
  refuses = refusals {
    { { 3, 5 }, { 2, -1 }, "listed twice" }, { { 3 }, { 2 }, "dim 2 outside" },
  },
}

-- --- joining
local function joined(xs, dim)
  local total, shape = 0, copy(xs[1].shape)
  for _, x in ipairs(xs) do total = total + x.shape[dim] end
  return fill(but(shape, dim, total), function(place)
    local at = place[dim]
    for _, x in ipairs(xs) do
      if at <= x.shape[dim] then return get(x, but(place, dim, at)) end
      at = at - x.shape[dim]
    end
  end)
end
local function lists(rows, reference)
  return function(g)
    local out = {}
    for i, row in ipairs(rows) do
      local xs = {}
      for k, s in ipairs(row[1]) do xs[k] = row.dtype and g.int(s, 0,
      2):to(row.dtype) or g.randn(s) end
      out[i] = { inputs = { xs = xs }, attrs = { n = 1, row[2] }, reference = reference,
      message = row.message }
    end
    return out
  end
end
M.cat = {
  cases = lists({
    { { { 2, 3 }, { 4, 3 } }, 1 }, { { { 2, 3 }, { 2, 1 }, { 2, 2 } }, 2 }, { { { 3 } } },
    { { { 2, 3 }, { 2, 3 } }, -1 }, { { { 0, 3 }, { 2, 3 } }, 1 }, { { { 2, 0 }, { 2, 0 } }, 2 },
    { { { 2, 2, 3 }, { 2, 1, 3 } }, 2 }, { { { 3, 2 }, { 3, 5 } }, 2, dtype = "bfloat16" },
    { { { 3 }, { 2 } }, 1, dtype = "bool" }, { { { 2, 200, 41 }, { 2, 210, 41 } }, 2 },
  }, function(ins, attrs)
    return joined(ins.xs, from_end(attrs[1] or 1, #ins.xs[1].shape))
  end),
  refuses = lists {
    { { { 2, 3 }, { 2, 4 } }, 1, message = "only dim 1 may differ" },
    { { { 2 }, { 2, 1 } }, 1, message = "tensor 2 has 2 dims" },
    { { {}, {} }, 1, message = "0%-dim" },
  },
}
M.stack = {
  cases = lists({
    { { { 2, 3 }, { 2, 3 } }, 1 }, { { { 2, 3 }, { 2, 3 }, { 2, 3 } }, -1 }, { { {}, {} } },
    { { { 2 }, { 2 } }, 2 }, { { { 0, 2 }, { 0, 2 } }, 2 },
  }, function(ins, attrs)
    local xs, rows = ins.xs, {}
    local dim = from_end(attrs[1] or 1, #xs[1].shape + 1)
    for i, x in ipairs(xs) do
      local shape = copy(x.shape)
      table.insert(shape, dim, 1)
      rows[i] = { shape = shape, data = x.data }
    end
    return joined(rows, dim)
  end),
  refuses = lists {
    { { { 2, 3 }, { 2, 4 } }, 1, message = "shapes must be the same" },
    { { { 2 }, { 2 } }, 3, message = "dim 3 outside" },
  },
}

M.pad = {
  cases = cases(function(ins, attrs)
    local x, pads, shape = ins[1], attrs[1], {}
    for d, s in ipairs(x.shape) do shape[d] = pads[2 * d - 1] + s + pads[2 * d] end
    return fill(shape, function(place)
      local at = {}
      for d, s in ipairs(x.shape) do
        at[d] = place[d] - pads[2 * d - 1]
        if at[d] < 1 or at[d] > s then return attrs[2] or 0 end
      end
      return get(x, at)
    end)
  end, {
    { { 3, 4 }, { 1, 2, 0, 3 }, 1 }, { { 3 }, { 2, 0 } }, { {}, {} },
    { { 0, 2 }, { 1, 1, 1, 0 }, 3 }, { { 2, 3, 2 }, { 0, 0, 1, 1, 2, 0 }, -1.5 },
    { { 2, 2 }, { 0, 0, 0, 0 } },
  }),
  refuses = refusals {
    { { 3, 4 }, { 1, 2 }, "wants 4 numbers" }, { { 3 }, { -1, 0 }, "use narrow to cut" },
  },
}

return M
