-- reference.lua: writes docs/reference.md from core/ops.def and the comments of lua/weft.
--   luajit tools/reference.lua           writes it
--   luajit tools/reference.lua --check   exit code 1 when it is not current
-- Run in the repository's root, after a build (WEFT_BUILD: its folder).
local build = os.getenv "WEFT_BUILD" or "build"

local function read(path)
  local f = assert(io.open(path, "rb"))
  local text = f:read "*a"
  f:close()
  return text
end

local function lines_of(path)
  local out = {}
  for line in (read(path) .. "\n"):gmatch "([^\n]*)\n" do out[#out + 1] = line end
  return out
end

local out = {}
local function put(format, ...) out[#out + 1] = select("#", ...) > 0 and format:format(...) or format end

-- What Markdown would take for markup of its own.
local function plain(text) return (text:gsub("[%*<|]", { ["*"] = "\\*", ["<"] = "&lt;", ["|"] = "\\|" })) end

-- --- operators
local titles = {
  elementwise = "Elementwise", activation = "Activations", layout = "Layout and views", reduce = "Reductions", sort = "Sorting",
  softmax = "Softmax", matmul = "Products", norm = "Norms", index = "Indexing", conv = "Convolution and resizing",
  attention = "Attention", loss = "Losses", random = "Random numbers", optim = "Optimizer steps", linalg = "Linear algebra",
}

local function operators()
  local signatures, docs = {}, {}
  for line in read(build .. "/generated/lua/weft/ops.lua"):gmatch "[^\n]+" do
    local kind, name, text = line:match "^(%l+)%.([%w_]+) = (\".*\")$"
    if kind == "signatures" then signatures[name] = loadstring("return " .. text)() end
    if kind == "docs" then docs[name] = loadstring("return " .. text)() end
  end
  put "## Operators\n"
  put("Each is a function of `weft` and, when its first argument is a tensor, a method of it: `weft.softmax(x, 2)` "
    .. "is `x:softmax(2)`. `[x]` may be left out, `{xs}` is a list of tensors, `rng` a stream of `weft.random`. "
    .. "The dtypes are those of the operands: *float* is float32 and float64, *num* also int32 and int64, *any* all but the "
    .. "half-precision formats, *all* every one. ∇ marks operators with a gradient.\n")
  local family
  for line in read "core/ops.def":gmatch "[^\n]+" do
    local name, f = line:match "^OP%(([%w_]+), (%w+),"
    if name and signatures[name] then
      if f ~= family then
        family = f
        put("\n### %s\n", titles[f] or f)
      end
      local dtypes = line:match '", "(%a+)", %('
      local grad = line:match ', ([%w_]+), "[^"]*"%)$'
      put("- `%s` *%s*%s  ", signatures[name], dtypes or "all", grad ~= "none" and grad ~= "zero" and " ∇" or "")
      put("  %s", plain(docs[name]))
    end
  end
end

-- --- functions and methods, from the comments above them
local function comment_above(lines, at)
  local first = at
  while first > 1 and lines[first - 1]:find "^%-%-%-" do first = first - 1 end
  if first == at then return nil end
  local body, params, returns, example = {}, {}, {}, {}
  for i = first, at - 1 do
    local text = lines[i]:sub(4)
    local param = text:match "^@param%s+(.*)"
    local ret = text:match "^@return%s+(.*)"
    local goes_on = text:match "^%s+(%S.*)"
    if param then params[#params + 1] = param
    elseif ret then returns[#returns + 1] = ret
    elseif text:find "^@" then body[#body + 1] = nil
    elseif text:find "^%s%s%s%s" then example[#example + 1] = text
    elseif goes_on and #returns > 0 then returns[#returns] = returns[#returns] .. " " .. goes_on
    elseif goes_on and #params > 0 then params[#params] = params[#params] .. " " .. goes_on
    else body[#body + 1] = text end
  end
  return { body = body, params = params, returns = returns, example = example }
end

local function entry(name, comment)
  put("\n#### `%s`\n", name)
  for i, text in ipairs(comment.body) do
    if not (text == "" and i == #comment.body) then put("%s", plain(text)) end
  end
  if #comment.params > 0 or #comment.returns > 0 then put "" end
  for _, p in ipairs(comment.params) do
    local param, kind = p:match "^(%S+)%s*(.*)$"
    put("- `%s` %s", param, plain(kind))
  end
  for _, r in ipairs(comment.returns) do put("- returns %s", plain(r)) end
  if #comment.example > 0 then
    put ""
    for _, text in ipairs(comment.example) do put("%s", text) end
  end
end

-- Parts that users do not call.
local hidden = {}
for name in ([[peft.inject peft.saved_paths peft.record peft.wrapped peft.report optim.class data.recognise
  weft.config.set_next weft.config.apply weft.config.new weft.io.image.options weft.runnable weft.random.take
  weft.random.set_step weft.io.json.null]]):gmatch "%S+" do hidden[name] = true end
-- Functions that users know by another name.
local renamed = { ["weft.backward"] = "t:backward(options)", ["weft.register_hook"] = "t:register_hook(fn)",
  ["weft.random.manual_seed"] = "weft.manual_seed(seed)", ["data.by_caption"] = "data.split(pairs, share, seed)" }

-- A definition's public name, or nil. names: what stands before the dot or colon in the file -> what users write.
local function public(line, names)
  local owner, mark, name, parameters = line:match "^function ([%w_%.]+)([.:])([%w_]+)%((.-)%)"
  if not owner then
    owner, name = line:match "^([%w_%.]+)%.([%w_]+) = "
    mark = "."
  end
  local as = owner and names[owner]
  if not as or name:sub(1, 1) == "_" or (as.methods and mark == ".") then return nil end
  if as.method then -- function M.name(t, ...) is t:name(...)
    return ("t:%s(%s)"):format(name, parameters and parameters:gsub("^[%w_]+,?%s*", "") or "...")
  end
  if mark == ":" and (name == "init" or name == "forward") then
    if name == "init" then return ("%s(%s)"):format(as[1], parameters) end
    return ("%s:forward(%s)"):format(as.object or as[1], parameters)
  end
  local prefix = mark == ":" and (as.object or as[1]) .. ":" or as[1] ~= "" and as[1] .. "." or ""
  return prefix .. name .. (parameters and "(" .. parameters .. ")" or "")
end

local function file(path, names)
  local lines = lines_of("lua/weft/" .. path)
  for at, line in ipairs(lines) do
    local name = public(line, names)
    local bare = name and name:match "^[^(]+"
    if name and hidden[bare] then name = nil end
    name = name and renamed[bare] or name
    local comment = name and comment_above(lines, at)
    if not comment and names.class then
      -- a class that a call makes: its comment stands above `local X = ...`
      name = line:match "^local %w+ = .*%(" and names.class
      if not name then name = line:match "^local function new%(" and names.class end
      comment = name and comment_above(lines, at)
    end
    if comment then entry(name, comment) end
  end
end

local function section(title, text, files)
  put("\n## %s\n", title)
  if text then put("%s", text) end
  for _, f in ipairs(files) do file(f[1], f[2]) end
end

local function layer(path, class) return { "nn/" .. path .. ".lua", { [class] = { "nn." .. class, object = class:lower() } } } end

put "# Reference\n"
put("Every operator, and every function with a comment, as the sources have them. This page is written by "
  .. "`luajit tools/reference.lua`; the suite checks that it is current. At the prompt, `?name` shows the same, "
  .. "and in a shell `weft help name`. Positions and dims count from 1, negative from the end; ids and indices inside "
  .. "tensors count from 0.\n")
operators()
section("Making tensors", nil, { { "tensor/create.lua", { M = { "weft" } } } })
section("Tensor methods", "Beside the operators. `t.shape`, `t.strides`, `t.ndim`, `t.dtype`, `t.device`, `t.requires_grad`, `t.is_leaf`, "
  .. "`t.grad` and `t.grad_op` are fields. Methods that say what they do by name: `t:size(dim)`, `t:numel()`, `t:is_contiguous()`, "
  .. "`t:reshape(2, -1)`, `t:expand(4, -1)`, `t:permute(2, 1)`, `t:flatten(from, to)`, `t:detach()`, `t:float32()` and so on for "
  .. "each dtype, `t:retain_grad()`, `t:zero_grad()`; in place `t:fill_(v)`, `t:zero_()`, `t:add_`, `t:sub_`, `t:mul_`, `t:div_`, "
  .. "`t:pow_`, `t:maximum_`, `t:minimum_`. `max`, `min`, `argmax` and `argmin` without a dim take all elements; `eq`, `ne`, `lt`, `le`, `gt`, `ge`, "
  .. "`maximum`, `minimum` and the arithmetic take a number too.", { { "tensor/methods.lua", { M = { "t", method = true } } } })
section("Memory, threads and the whole", nil, { { "init.lua", { M = { "weft" } } }, { "scope.lua", { M = { "weft" } } },
  { "cuda.lua", { M = { "weft.cuda" } } }, { "dist.lua", { M = { "weft.dist" }, Group = { "weft.dist", object = "group" } } } })
section("Autograd", nil, { { "autograd/init.lua", { M = { "weft" } } }, { "autograd/gradcheck.lua", { M = { "weft" } } } })
section("Random streams", nil, { { "random.lua", { M = { "weft.random" } } } })
section("nn: modules", "`nn.Module \"Name\"` makes a class; what follows are its methods, then the layers.", {
  { "nn/init.lua", { M = { "nn" } } },
  { "nn/module.lua", { Module = { "nn", object = "module" } } },
  layer("linear", "Linear"), layer("embedding", "Embedding"), layer("layer_norm", "LayerNorm"), layer("rms_norm", "RMSNorm"),
  layer("dropout", "Dropout"), layer("drop_path", "DropPath"), layer("conv2d", "Conv2d"),
  layer("attention", "MultiHeadAttention"), layer("module_list", "ModuleList"), layer("sequential", "Sequential"),
  { "nn/activation.lua", { M = { "nn" }, ["M.GELU"] = { "nn.GELU" } } },
  { "nn/initial.lua", { M = { "nn.initial" } } },
})
section("optim: optimizers and schedules", nil, {
  { "optim/adamw.lua", { class = "optim.AdamW(params, options)" } }, { "optim/sgd.lua", { class = "optim.SGD(params, options)" } },
  { "optim/optimizer.lua", { Optimizer = { "optim", object = "optimizer" } } },
  { "optim/clip.lua", { M = { "optim" } } },
  { "optim/ema.lua", { EMA = { "optim.EMA", object = "ema" }, class = "optim.EMA(params, options)" } },
  { "optim/schedule.lua", { M = { "optim.schedule" } } },
})
section("peft: adapters", nil, {
  { "peft/lora.lua", { M = { "peft" } } }, { "peft/adapters.lua", { M = { "peft" } } }, { "peft/merge.lua", { M = { "peft" } } },
  { "peft/combine.lua", { M = { "peft" } } }, { "peft/groups.lua", { M = { "peft" } } }, { "peft/convert.lua", { M = { "peft" } } },
  { "peft/save.lua", { M = { "peft" } } }, { "peft/load.lua", { M = { "peft" } } }, { "peft/spectrum.lua", { M = { "peft" } } },
})
section("models", nil, {
  { "models/dinov2.lua", { M = { "models.dinov2" }, Dinov2 = { "models.dinov2", object = "dinov2" } } },
  { "models/llama.lua", { Llama = { "models.llama", object = "llama" } } },
  { "models/fiber.lua", { Fiber = { "models.fiber", object = "fiber" } } },
  { "models/gpm.lua", { M = { "models.gpm", object = "gpm" } } },
  { "models/pool.lua", { M = { "models.pool" } } },
})
section("losses", nil, {
  { "losses/itc.lua", { ITC = { "losses.ITC", object = "itc" } } }, { "losses/itm.lua", { ITM = { "losses.ITM", object = "itm" } } },
  { "losses/queue.lua", { Queue = { "losses.Queue", object = "queue" } } },
  { "losses/momentum.lua", { Momentum = { "losses.Momentum", object = "momentum" } } },
})
section("data and evaluation", "`weft.eval.retrieval`, `weft.eval.itm` and `weft.eval.captions` go into a recipe's `evaluate`.", {
  { "data/init.lua", { M = { "data" } } }, { "data/pairs.lua", { M = { "data" } } }, { "data/split.lua", { M = { "data" } } },
  { "data/captioned.lua", { Dataset = { "data", object = "dataset", methods = true } } },
})
section("train: recipes and runs", nil, {
  { "train/init.lua", { M = { "train" } } }, { "config.lua", { M = { "weft.config" } } },
  { "train/loop.lua", { M = { "run", object = "run" } } }, { "train/step.lua", { M = { "run", object = "run" } } }, { "train/run.lua", { Run = { "run", object = "run", methods = true } } },
})
section("ablate: grids of runs", nil, { { "ablate/init.lua", { M = { "weft" } } } })
section("Looking into models", "What `weft repl RUN` has at hand, and scripts too. `weft.peft.spectrum`, `scale`, `activate` and `disable` are "
  .. "above.", {
  { "trace.lua", { M = { "weft" } } }, { "probe/capture.lua", { M = { "weft" } } }, { "probe/flow.lua", { M = { "weft" } } },
  { "probe/compare.lua", { M = { "weft" } } }, { "probe/attention.lua", { M = { "weft" } } }, { "probe/nearest.lua", { M = { "weft" } } },
  { "show/init.lua", { M = { "weft" } } }, { "plot.lua", { M = { "weft" } } } })
section("io: files", nil, {
  { "io/init.lua", { M = { "weft" } } },
  { "io/safetensors.lua", { safetensors = { "weft.io.safetensors" }, File = { "file", object = "file" } } },
  { "io/json.lua", { json = { "weft.io.json" } } },
  { "io/tokenizer.lua", { tokenizer = { "weft.tokenizer" }, Tokenizer = { "tokenizer", object = "tokenizer" } } },
  { "io/image.lua", { image = { "weft.io.image" } } },
  { "io/loader.lua", { M = { "weft.io.loader" }, Loader = { "loader", object = "loader" } } },
})

-- --- the command, as its own help has it
package.path = "lua/?.lua;lua/?/init.lua;" .. package.path
local cli = require "weft.cli"
put "\n## The command\n"
put("```text\n%s```", cli.overview())
for _, verb in ipairs(cli.verbs()) do put("\n### weft %s\n\n```text\n%s```", verb, (cli.help(verb, cli.verb(verb)):gsub(" +\n", "\n"))) end

local text = table.concat(out, "\n") .. "\n"
local path = "docs/reference.md"
if arg[1] == "--check" then
  local f = io.open(path, "rb")
  local now = f and f:read "*a"
  if now ~= text then
    io.stderr:write(path, " is not what the sources say: run luajit tools/reference.lua\n")
    os.exit(1)
  end
else
  local f = assert(io.open(path, "wb"))
  f:write(text)
  f:close()
  print(path)
end
