-- plain.lua: elementwise references over plain tensors { shape, data } with NumPy broadcasting.
local M = {}

---Elements in a shape.
function M.numel(shape)
  local n = 1
  for _, s in ipairs(shape) do n = n * s end
  return n
end

---The shape that shapes broadcast to.
function M.broadcast(...)
  local out, most = {}, 0
  for _, shape in ipairs { ... } do most = math.max(most, #shape) end
  for d = 1, most do
    local size = 1
    for _, shape in ipairs { ... } do
      local s = shape[d - (most - #shape)]
      if s and s ~= 1 then size = s end
    end
    out[d] = size
  end
  return out
end

---Position (from 1) in t's data of the element that t broadcasts to place i (from 0) of shape.
function M.at(t, shape, i)
  local at, step = 0, 1
  for d = #shape, 1, -1 do
    local c = i % shape[d]
    i = (i - c) / shape[d]
    local s = t.shape[d - (#shape - #t.shape)]
    if s then
      if s ~= 1 then at = at + c * step end
      step = step * s
    end
  end
  return at + 1
end

---A reference that applies fn to the elements of all inputs; attributes come after them.
function M.each(fn)
  return function(ins, attrs)
    local count, shapes = 0, {}
    while ins[count + 1] do
      count = count + 1
      shapes[count] = ins[count].shape
    end
    local shape = M.broadcast(unpack(shapes))
    local data, args = {}, {}
    for i = 0, M.numel(shape) - 1 do
      for k = 1, count do args[k] = ins[k].data[M.at(ins[k], shape, i)] end
      for k, v in ipairs(attrs) do args[count + k] = v end
      data[i + 1] = fn(unpack(args, 1, count + #attrs))
    end
    return { shape = shape, data = data }
  end
end

---A reference that fills shape by fn(place), place being a list of positions from 1.
function M.fill(shape, fn)
  local data, place = {}, {}
  for d = 1, #shape do place[d] = 1 end
  for i = 1, M.numel(shape) do
    data[i] = fn(place)
    for d = #shape, 1, -1 do
      place[d] = place[d] + 1
      if place[d] <= shape[d] then break end
      place[d] = 1
    end
  end
  return { shape = shape, data = data }
end

---The element of plain tensor t at a place.
function M.get(t, place)
  local at = 0
  for d, size in ipairs(t.shape) do at = at * size + place[d] - 1 end
  return t.data[at + 1]
end

return M
