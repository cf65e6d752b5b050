-- repl.lua: the prompt. Lines run with the JIT off and a count hook, so that Ctrl-C always lands:
-- hooks never fire in compiled loops.
local M = {
  summary = "the prompt: evaluates and prints; Ctrl-C stops a line",
  usage = "[RUN | RECIPE] [key.sub=value ...] [--plain]",
  about = "With a run or a recipe, run, model, data, config and batch are at hand; look() says what can be asked.\n"
    .. "Nothing that is done there changes the run's folder.\n"
    .. "The value of an expression is printed; ; at the end silences it; _ is the last value, all(_) shows all of it.\n"
    .. "?NAME explains an operator or a function. An unfinished line goes on in the next. Tab completes names, and\n"
    .. "after an opening parenthesis shows the arguments.\n"
    .. "From a pipe, lines are run without banner or prompt; the exit code is 1 if one failed.",
  options = { { "plain", "read lines without editing them" } },
  examples = { "weft", "weft repl runs/quickstart/2026-11-23-run", "echo 'weft.ones{2, 3}:sum()' | weft repl" },
}

local SLOW = 1.0 -- seconds from which a line's time is shown
local HOOK_EVERY = 1000

local function values(...) return { n = select("#", ...), ... } end

---Compiles one input: as an expression whose values are returned, or as statements.
---@return function? chunk, string? problem, boolean? unfinished
function M.compile(text, name)
  -- a call in front of the values keeps the chunk's own frame: errors find their line
  -- (a closing parenthesis on a line of its own would shift some, so only where a comment wants it)
  local close = text:find("--", 1, true) and "\n)" or ")"
  local chunk = loadstring("local __values = ... return __values(" .. text .. close, name)
  if chunk then return chunk end
  local problem
  chunk, problem = loadstring(text, name)
  if chunk then return chunk end
  local _, as_value = loadstring("return " .. text, name)
  local unfinished = problem:find("near '<eof>'", 1, true) or as_value and as_value:find("near '<eof>'", 1, true)
  return nil, problem, unfinished ~= nil
end

-- `local x = 1` would be forgotten at the end of its line: at the prompt it sets x.
local function keep_local(text)
  return (text:gsub("^(%s*)local%s+function%s", "%1function ", 1)
    :gsub("^(%s*)local%s+([%a_][%w_%s,]*=[^=])", "%1%2", 1))
end

local Session = {}
Session.__index = Session

---@param options table  out, err (functions taking text), state (the core's), interactive
function M.session(options)
  local env = setmetatable({}, { __index = _G })
  env._G = env
  return setmetatable({ env = env, out = options.out, err = options.err, state = options.state,
    interactive = options.interactive, failed = false, line = 0 }, Session)
end

function Session:explain(name)
  name = name:match "^%s*(.-)%s*$":gsub("^weft%.", "")
  if name == "" then
    self.out "?NAME explains an operator or a function, such as ?layer_norm or ?peft.lora; the verbs are in: weft help\n"
    return
  end
  local text, problem = require("weft.help").text(name)
  self.out(text or problem .. "\n")
end

-- Runs a chunk so that the interrupt flag stops it, wherever it is.
function Session:guarded(chunk)
  local state = self.state
  jit.off()
  jit.flush()
  debug.sethook(function()
    if state.interrupt ~= 0 then
      state.interrupt = 0
      error("interrupted", 0)
    end
  end, "", HOOK_EVERY)
  local results = values(xpcall(function() return chunk(values) end, function(e)
    if type(e) == "string" and os.getenv "WEFT_TRACE" then return debug.traceback(e, 2) end
    return e
  end))
  debug.sethook()
  jit.on()
  return results
end

---Runs one input. Returns true when it is unfinished and wants another line.
---@param text string
---@return boolean
function Session:eval(text)
  if not text:find "%S" then return false end
  local asked = text:match "^%s*%?(.*)$"
  if asked then
    self:explain(asked)
    return false
  end
  text = text:gsub("^%s*=", "", 1)
  local silent = text:find ";%s*$" ~= nil
  local source = keep_local(silent and text:gsub(";%s*$", "") or text)
  local chunk, problem, unfinished = M.compile(source, "=stdin")
  if unfinished then return true end
  if not chunk then
    self:fail(problem)
    return false
  end
  setfenv(chunk, self.env)
  local began = M.clock()
  local results = self:guarded(chunk)
  self:report(results, silent, M.clock() - began)
  return false
end

function Session:fail(e)
  self.failed = true
  self.err((type(e) == "table" and getmetatable(e) == nil and e.message or tostring(e)) .. "\n")
end

function Session:report(results, silent, seconds)
  if not results[1] then
    self:fail(results[2])
  elseif type(results[2]) == "table" and results[2].n then
    local list = results[2]
    if list[1] ~= nil then self.env._ = list[1] end
    if not silent and list.n > 0 then
      local show = require("weft.cli.show").value
      local texts = {}
      for i = 1, list.n do
        local ok, text = pcall(show, list[i])
        texts[i] = ok and text or "(tostring failed: " .. tostring(text) .. ")"
      end
      self.out(table.concat(texts, "\t") .. "\n")
    end
  end
  if self.interactive and seconds >= SLOW then self.out(("(%.1f s)\n"):format(seconds)) end
end

---Seconds from some fixed moment.
function M.clock()
  local ffi = require "ffi"
  pcall(ffi.cdef, [[
    typedef struct weft_timespec { long sec, nsec; } weft_timespec;
    int clock_gettime(int clock, weft_timespec *t);
  ]])
  local t = ffi.new "weft_timespec"
  ffi.C.clock_gettime(1, t)
  return tonumber(t.sec) + tonumber(t.nsec) * 1e-9
end

local LOOK = [[
at hand: run, model, data, config, batch (a few held-out pictures)
  model                                            the tree of modules
  weft.trace(model, batch)                         every module: shape, time, memory, mean, spread, NaN
  weft.capture(run, "vision.encoder.layer.*", batch)  what modules made; { gradients = true } at the end: gradients too
  weft.flow(run, batch)                            gradient by part of the model
  weft.attention(run, "dog.jpg", { over = true })  where the encoder looks; weft.show draws it
  weft.peft.spectrum(model, { values = true })     each adapter's change beside its base weight
  weft.peft.scale(model, 0.5);                     strength of the adapters; peft.activate switches, peft.disable runs without
  weft.compare(run, batch)                         what the adapters change, module by module
  weft.nearest(run, "dog.jpg", 5)                  nearest captions; of a text: nearest pictures
  step(10)                                         train a little, by hand
  reload()                                         the edited recipe, with the weights as they are
  weft.show(x)  weft.plot(x)                       pictures and numbers, drawn
]]

-- Puts a run, and what belongs to it, at the session's hand.
local function hand(session, path, overrides)
  local by_hand, env = require "weft.probe.hand", session.env
  local function take(run)
    env.run, env.model, env.data, env.config = run, run.model, run.data, run.config
    local ok, batch = pcall(by_hand.batch, run)
    env.batch = ok and batch or nil
  end
  local run, note = by_hand.open(path, overrides)
  take(run)
  function env.look() session.out(LOOK) end
  function env.step(n) return (by_hand.step(env.run, n)) end
  function env.reload(...)
    local new, text = by_hand.reload(env.run, { ... })
    take(new)
    session.out(text .. "\n")
  end
  if note then session.err(note .. "\n") end
  if session.interactive then
    session.out(("%s at step %d: run, model, data, config and batch are at hand; look() says what can be asked\n"):format(path, run.step))
  end
end

function M.run(args)
  local path, overrides = nil, {}
  for _, word in ipairs(args) do
    if word:find("=", 1, true) then overrides[#overrides + 1] = word
    elseif path then error({ usage = ("one run or recipe is expected, got %s and %s"):format(path, word) }, 0)
    else path = word end
  end
  if #overrides > 0 and not path then error({ usage = overrides[1] .. " goes with a run or a recipe" }, 0) end
  local core = require "weft.core"
  local lines = require "weft.cli.line"
  local interactive = lines.interactive()
  local session = M.session {
    state = core.state,
    interactive = interactive,
    out = function(text) io.write(text) io.flush() end,
    err = function(text) io.flush() io.stderr:write(text) end,
  }
  local weft = require "weft"
  session.env.weft = weft
  session.env.all = function(v) session.out(require("weft.cli.show").all(v) .. "\n") end
  if interactive then
    core.lib.weft_catch_interrupt(true)
    io.write(("weft %s  %s, %d threads   ?NAME explains, Ctrl-D ends\n"):format(core.version,
      require("ffi").string(core.lib.weft_cpu_path()), core.lib.weft_threads()))
  end
  if path then hand(session, path, overrides) end
  local read = lines.reader {
    interactive = interactive,
    plain = args.plain,
    prompts = { "> ", ">> " },
    interrupted = function()
      local was = core.state.interrupt ~= 0
      core.state.interrupt = 0
      return was
    end,
    arguments = function(before) return require("weft.cli.complete").arguments(before, session.env) end,
    complete = function(word) return require("weft.cli.complete").names(word, session.env) end,
  }
  local pending
  while true do
    local line = read(pending and 2 or 1)
    if line == lines.INTERRUPTED then
      pending = nil
    elseif line == nil then
      break
    else
      local text = pending and pending .. "\n" .. line or line
      pending = session:eval(text) and text or nil
    end
  end
  if pending then session:fail "stdin: the input ends in the middle of a statement" end
  core.lib.weft_catch_interrupt(false)
  return session.failed and not interactive and 1 or 0
end

return M
