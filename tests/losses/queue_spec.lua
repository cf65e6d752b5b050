-- queue_spec.lua: a ring of past samples, for any batch, that a checkpoint carries.
local weft = require "weft"
local Queue = require "weft.losses.queue"

local function rows(from, count)
  local t = weft.arange(from, from + count)
  return { image = t:reshape(count, 1), ids = t:to "int64" }
end
local function make(size) return Queue(size, { image = { 1 }, ids = { dtype = "int64" } }) end
local function ids(queue) return queue:get("ids"):totable() end

describe("Queue", function()
  it("fills, then overwrites the oldest", function()
    local q = make(5)
    assert.equal(0, q:filled())
    q:push(rows(1, 3))
    assert.equal(0, q:filled())
    q:commit()
    assert.same({ 1, 2, 3 }, ids(q))
    q:push(rows(4, 3))
    q:commit()
    assert.same({ 6, 2, 3, 4, 5 }, ids(q))
    assert.same({ { 6 }, { 2 }, { 3 }, { 4 }, { 5 } }, q:get("image"):totable())
  end)

  it("keeps the last rows of a batch larger than itself", function()
    local q = make(4)
    q:push(rows(1, 11))
    q:commit()
    local seen = ids(q)
    table.sort(seen)
    assert.same({ 8, 9, 10, 11 }, seen)
    q:push(rows(20, 1))
    q:commit()
    local after = ids(q)
    table.sort(after)
    assert.same({ 9, 10, 11, 20 }, after)
  end)

  it("takes any sizes in turn as a plain list would", function()
    local q, list, at = make(7), {}, 1
    for _, n in ipairs { 1, 6, 3, 7, 2, 9, 5, 14, 1 } do
      q:push(rows(at, n))
      q:commit()
      for i = at, at + n - 1 do list[#list + 1] = i end
      while #list > 7 do table.remove(list, 1) end
      at = at + n
      local seen = ids(q)
      table.sort(seen)
      assert.same(list, seen)
    end
  end)

  it("remembers nothing in evaluation", function()
    local q = make(4)
    q:eval()
    q:push(rows(1, 2))
    q:commit()
    assert.equal(0, q:filled())
  end)

  it("outlives the scope of the step that pushed", function()
    local q = make(4)
    weft.scope(function() q:push(rows(1, 2)) end)
    q:commit()
    assert.same({ 1, 2 }, ids(q))
  end)

  it("refuses rows that hold a NaN, and counts them", function()
    local q = make(4)
    local batch = rows(1, 3)
    batch.image[2]:fill_(0 / 0)
    q:push(batch)
    q:commit()
    assert.same({ 1, 3 }, ids(q))
    assert.equal(1, q.refused)
  end)

  it("comes back from its state", function()
    local q, other = make(5), make(5)
    q:push(rows(1, 7))
    q:commit()
    other:load_state_dict(q:state_dict())
    for _, one in ipairs { q, other } do
      one:push(rows(50, 2))
      one:commit()
    end
    assert.same(ids(q), ids(other))
  end)

  it("does not disturb a loss that read it", function()
    local q = make(4)
    q:push(rows(1, 4))
    q:commit()
    local w = weft.ones { 1, 1, requires_grad = true }
    local loss = weft.cat({ w, q:get "image" }, 1):matmul(w):sum()
    q:push(rows(9, 2))
    loss:backward()
    q:commit()
    assert.equal(2 + 10, w.grad:item())
  end)

  it("refuses rows of another shape by name", function()
    local ok, message = pcall(function() make(4):push { image = weft.zeros { 2, 3 }, ids = weft.zeros { 2, dtype = "int64" } } end)
    assert.is_false(ok)
    assert.matches("image is %[2,3%]; rows of %[1%]", message)
  end)
end)
