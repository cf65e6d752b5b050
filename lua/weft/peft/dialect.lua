-- dialect.lua: two generations of transformers call the same modules differently. Ours are the names of
-- the older one, which model files keep; adapters of either are read and written.
local M = {}

---Ends of module paths: { ours, the newer name }. The first that fits is used.
M.paths = {
  { "attention.attention.query", "attention.q_proj" },
  { "attention.attention.key", "attention.k_proj" },
  { "attention.attention.value", "attention.v_proj" },
  { "attention.output.dense", "attention.o_proj" },
  { "mlp.weights_out", "mlp.down_proj" },
}

---Entries of target_modules that are no paths.
M.words = { query = "q_proj", key = "k_proj", value = "v_proj", dense = "o_proj", ["output.dense"] = "o_proj",
  weights_out = "down_proj" }

---The same from the newer generation.
M.older_words = { q_proj = "query", k_proj = "key", v_proj = "value", o_proj = "output.dense", down_proj = "weights_out" }

---Modules that the newer generation cut in two, which an adapter of ours can't be written for.
M.split = { "mlp.weights_in" }

local function ends_with(path, tail)
  return path == tail or path:sub(-#tail - 1) == "." .. tail
end
M.ends_with = ends_with

local function swap(path, from, to)
  for _, pair in ipairs(M.paths) do
    if ends_with(path, pair[from]) then return path:sub(1, #path - #pair[from]) .. pair[to] end
  end
  return path
end

---A module's path in the newer generation; nil where it has no module of its own there.
function M.newer(path)
  for _, tail in ipairs(M.split) do
    if ends_with(path, tail) then return nil end
  end
  return (swap(path, 1, 2))
end

---Our path of a module, from either generation.
function M.ours(path) return (swap(path, 2, 1)) end

return M
