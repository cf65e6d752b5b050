-- dialect.lua: two generations of transformers call the same modules differently. Ours are the names of
-- the older one, which model files keep; adapters of either are read and written.
local M = {}

---Ends of module paths right below a layer: { ours, the newer name }, or the two names of what the newer
---generation cut in two (rows of the first, then of the second).
M.paths = {
  { "attention.attention.query", { "attention.q_proj" } },
  { "attention.attention.key", { "attention.k_proj" } },
  { "attention.attention.value", { "attention.v_proj" } },
  { "attention.output.dense", { "attention.o_proj" } },
  { "mlp.weights_out", { "mlp.down_proj" } },
  { "mlp.weights_in", { "mlp.gate_proj", "mlp.up_proj" } },
}

---Entries of target_modules that are no paths.
M.words = { query = { "q_proj" }, key = { "k_proj" }, value = { "v_proj" }, dense = { "o_proj" }, ["output.dense"] = { "o_proj" },
  weights_out = { "down_proj" }, weights_in = { "gate_proj", "up_proj" } }

---The same from the newer generation.
M.older_words = { q_proj = "query", k_proj = "key", v_proj = "value", o_proj = "output.dense", down_proj = "weights_out",
  gate_proj = "weights_in", up_proj = "weights_in" }

local function ends_with(path, tail)
  return path == tail or path:sub(-#tail - 1) == "." .. tail
end
M.ends_with = ends_with

-- What stands before a tail; nil where that is no layer of an encoder (LLaMA's "layers" is another model).
local function before(path, tail)
  if not ends_with(path, tail) then return nil end
  local head = path:sub(1, #path - #tail)
  return (head == "" or head:find "^layer%.%d+%.$" or head:find "%.layer%.%d+%.$") and head or nil
end

---A module's paths in the newer generation: one, or two where it was cut in two.
function M.newer_names(path)
  for _, pair in ipairs(M.paths) do
    local head = before(path, pair[1])
    if head then
      local list = {}
      for i, tail in ipairs(pair[2]) do list[i] = head .. tail end
      return list
    end
  end
  return { path }
end

---A module's path in the newer generation; nil where it has no module of its own there.
function M.newer(path)
  local list = M.newer_names(path)
  return list[2] == nil and list[1] or nil
end

---Our path of a module, from either generation; and which part of ours it is, where it was cut in two.
---@return string path, integer? part
function M.ours(path)
  for _, pair in ipairs(M.paths) do
    for i, tail in ipairs(pair[2]) do
      local head = before(path, tail)
      if head then return head .. pair[1], pair[2][2] and i or nil end
    end
  end
  return path
end

return M
