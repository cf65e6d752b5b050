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
local AGAIN = 0.2 -- seconds after which an interruption that was swallowed is raised again

local Values = {}
local function values(...) return setmetatable({ n = select("#", ...), ... }, Values) end

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
    interactive = options.interactive, failed = false, paint = options.paint or function(_, text) return text end }, Session)
end

function Session:explain(name)
  name = name:match "^%s*(.-)%s*$":gsub("^weft%.", "")
  if name == "" then
    self.out "?NAME explains an operator or a function, such as ?layer_norm or ?peft.lora; the verbs are in: weft help\n"
    return
  end
  local help = require "weft.help"
  local text, problem = help.text(name)
  if not text then text = self:explain_own(name) end
  local head, rest = (text or problem .. "\n"):match "^([^\n]*)(.*)$"
  self.out((text and self.paint("bold", head) or head) .. rest)
end

-- Of a name of the session's own: x:softmax, run.batch, model.
function Session:explain_own(name)
  local object, owner = self.env, nil
  for key in name:gmatch "[^.:]+" do
    local ok, value = pcall(function() return object[key] end)
    if not ok or value == nil then return nil end
    owner, object = object, value
  end
  local help = require "weft.help"
  if require("weft.args").is_tensor(owner) then return (help.text(name:match "[^.:]+$")) end
  return help.of(name, object)
end

-- Runs a function, as pcall does, so that Ctrl-C stops it, wherever it is: in Lua by a hook, in an operator by the flag that
-- it polls. Where the line catches that error and goes on, it is raised again at whatever comes next.
function Session:guarded(fn, ...)
  local state = self.state
  local before, stopped_at = state.interrupts, nil
  local function hook()
    if state.interrupts == before or debug.getinfo(2, "f").func == Session.guarded then return end
    if not stopped_at then
      stopped_at = M.clock()
      if state.interrupt == 0 then return end  -- an operator has raised it
    elseif state.interrupt == 0 then
      if M.clock() - stopped_at < AGAIN then return end
      debug.sethook(hook, "", 1)
    end
    state.interrupt = 0
    error("interrupted", 0)
  end
  jit.off()
  jit.flush()
  debug.sethook(hook, "", HOOK_EVERY)
  local ok, result
  if os.getenv "WEFT_TRACE" then
    ok, result = xpcall(fn, function(e) return type(e) == "string" and debug.traceback(e, 2) or e end, ...)
  else
    ok, result = pcall(fn, ...)
  end
  debug.sethook()
  jit.on()
  state.interrupt = 0
  return ok, result
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
  local ok, result = self:guarded(chunk, values)
  self:report(ok, result, silent)
  local seconds = M.clock() - began
  if self.interactive and seconds >= SLOW then self.out(self.paint("dim", ("(%.1f s)"):format(seconds)) .. "\n") end
  return false
end

function Session:fail(e)
  self.failed = true
  local text = type(e) == "table" and getmetatable(e) == nil and e.message or tostring(e)
  if text:find "^[^\n]*: interrupted$" then text = "interrupted" end
  self.err(self.paint("error", text) .. "\n")
end

-- Texts of values, for the screen.
local function texts_of(list)
  local show, texts = require("weft.cli.show").value, {}
  for i = 1, list.n do
    local ok, text = pcall(show, list[i])
    texts[i] = ok and text or "(tostring failed: " .. tostring(text) .. ")"
  end
  return table.concat(texts, "\t")
end

function Session:report(ok, list, silent)
  if not ok then
    self:fail(list)
  elseif getmetatable(list) == Values then
    if list[1] ~= nil then self.env._ = list[1] end
    if not silent and list.n > 0 then
      local shown, text = self:guarded(texts_of, list)
      if shown then self.out(text .. "\n") else self:fail(text) end
    end
  end
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
  model                            the tree of modules
  weft.trace(model, batch)         every module: shape, time, memory, mean, NaN
  weft.capture(run, "vision.encoder.layer.*", batch)
                                   what modules made; { gradients = true } as a
                                   fourth: gradients too
  weft.flow(run, batch)            gradient by part of the model
  weft.attention(run, "dog.jpg", { over = true })
                                   where the encoder looks; weft.show draws it
  weft.peft.spectrum(model, { values = true })
                                   each adapter's change beside its base weight
  weft.peft.scale(model, 0.5);     strength of the adapters; peft.activate
                                   switches, peft.disable runs without
  with(model, { scale = 0 }, function() return run:scores "retrieval" end)
                                   anything, without the adapters for once
  weft.compare(run, batch)         what the adapters change, module by module
  weft.nearest(run, "dog.jpg", 5)  nearest captions; of a text: nearest pictures
  step(10)                         train a little, by hand
  reload()                         the edited recipe, with the weights kept
  weft.show(x)  weft.plot(x)       pictures and numbers, drawn
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
  env.with = require("weft.peft").with
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
  local terminal = require "weft.terminal"
  local interactive = lines.interactive()
  local session = M.session {
    state = core.state,
    interactive = interactive,
    paint = interactive and terminal.is_terminal(2) and terminal.paint or nil,
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
    complete = function(before, word) return require("weft.cli.complete").complete(before, word, session.env) end,
  }
  local pending
  while true do
    local line, more = read(pending and 2 or 1)
    if line == lines.INTERRUPTED then
      pending = nil
    elseif line == nil then
      break
    else
      local text = pending and pending .. "\n" .. line or line
      -- what was pasted is one input: it waits for its last line
      pending = (more or session:eval(text)) and text or nil
    end
  end
  if pending then session:fail "stdin: the input ends in the middle of a statement" end
  core.lib.weft_catch_interrupt(false)
  return session.failed and not interactive and 1 or 0
end

return M
