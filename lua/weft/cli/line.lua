-- line.lua: lines from whoever types: edited by libedit on a terminal, plain from a pipe or where
-- libedit is missing. Keeps the history file.
local ffi = require "ffi"
local bit = require "bit"

ffi.cdef [[
int isatty(int fd);
void *malloc(size_t n);
void free(void *p);
char *strdup(const char *s);
char *setlocale(int category, const char *locale);
char *nl_langinfo(int item);
void rl_callback_handler_install(const char *prompt, void (*handler)(char *));
void rl_callback_handler_remove(void);
void rl_callback_read_char(void);
int add_history(const char *line);
void stifle_history(int n);
extern const char *rl_basic_word_break_characters;
extern const char *rl_completer_word_break_characters;
extern char **(*rl_attempted_completion_function)(const char *, int, int);
extern int rl_attempted_completion_over;
extern const char *rl_readline_name;
extern char *rl_line_buffer;
extern int rl_completion_append_character;
extern int (*rl_getc_function)(void *);
int rl_on_new_line(void);
int rl_forced_update_display(void);
]]

local keys = require "weft.cli.keys"

local M = {}

local KEPT = 2000
local BREAKS = " \t\n\"'`@$><=;|&{}()[]+-*/^%#,~!?" -- what ends a word that is to be completed
local INTERRUPTED = {}
M.INTERRUPTED = INTERRUPTED

---Whether both ends are a terminal.
function M.interactive() return ffi.C.isatty(0) == 1 and ffi.C.isatty(1) == 1 end

---Where history is kept; nil when there is no home.
function M.history_path()
  local state = os.getenv "XDG_STATE_HOME"
  if not state or state == "" then
    local home = os.getenv "HOME"
    if not home or home == "" then return nil end
    state = home .. "/.local/state"
  end
  return state .. "/weft/history"
end

local function quoted(path) return "'" .. path:gsub("'", "'\\''") .. "'" end

-- The file's last lines; a file grown to twice what is kept is rewritten.
local function load_history(path)
  local lines = {}
  local f = io.open(path)
  if not f then return lines end
  for line in f:lines() do lines[#lines + 1] = line end
  f:close()
  local last = {}
  for i = math.max(1, #lines - KEPT + 1), #lines do last[#last + 1] = lines[i] end
  if #lines > 2 * KEPT then
    local out = io.open(path .. ".new", "w")
    if out then
      out:write(table.concat(last, "\n"), "\n")
      out:close()
      os.rename(path .. ".new", path)
    end
  end
  return last
end

-- A history that appends at once, so that a killed session loses nothing.
local function history()
  local path = M.history_path()
  if not path then return {}, function() end end
  local lines = load_history(path)
  local f = io.open(path, "a")
  if not f then
    os.execute("mkdir -p " .. quoted(path:match "^(.*)/") .. " 2>/dev/null")
    f = io.open(path, "a")
  end
  return lines, function(line)
    if not f then return end
    f:write(line, "\n")
    f:flush()
  end
end

local function plain(prompts, interrupted)
  return function(kind)
    if prompts then
      io.write(prompts[kind])
      io.flush()
    end
    local line = io.read "*l"
    if line == nil and interrupted and interrupted() then return INTERRUPTED end
    return line
  end
end

-- libedit takes what the locale calls characters: UTF-8, also where none is set.
local function wide_characters()
  local LC_CTYPE = ffi.os == "OSX" and 2 or 0
  ffi.C.setlocale(LC_CTYPE, "")
  local CODESET = ffi.os == "OSX" and 0 or 14
  if ffi.string(ffi.C.nl_langinfo(CODESET)) ~= "UTF-8" then ffi.C.setlocale(LC_CTYPE, "C.UTF-8") end
end

-- libedit's readline face in its callback form: poll returns at a signal, where its blocking form
-- would swallow Ctrl-C.
local function edited(lib, prompts, interrupted, complete)
  local brackets = os.getenv "TERM" ~= "dumb"
  local stopped, at_end
  local function stop()
    stopped = stopped or interrupted()
    return stopped
  end
  local typed = keys.new { fd = 0, interrupted = stop }
  wide_characters()
  -- before anything else, which would set libedit up to read by itself
  lib.rl_getc_function = ffi.cast("int (*)(void *)", function()
    local code = typed.get()
    at_end = code < 0
    return code
  end)
  local lines, remember = history()
  lib.stifle_history(KEPT)
  for _, line in ipairs(lines) do lib.add_history(line) end
  local last = lines[#lines]

  local got, ended
  local handler = ffi.cast("void (*)(char *)", function(text)
    lib.rl_callback_handler_remove()
    if text == nil then
      ended = true
    else
      got = ffi.string(text)
      ffi.C.free(text)
    end
  end)
  local completer = ffi.cast("char **(*)(const char *, int, int)", function(text, start)
    lib.rl_attempted_completion_over = 1
    local ok, names = pcall(complete, ffi.string(lib.rl_line_buffer, start), ffi.string(text))
    if ok and type(names) == "string" then -- to be read: the line stays
      io.write("\n", names, "\n")
      io.flush()
      pcall(function()
        lib.rl_on_new_line()
        lib.rl_forced_update_display()
      end)
    end
    if not ok or #names == 0 or type(names) == "string" then return nil end
    local common = names[1]
    for _, name in ipairs(names) do
      while name:sub(1, #common) ~= common do common = common:sub(1, -2) end
    end
    local list = ffi.cast("char **", ffi.C.malloc((#names + 2) * ffi.sizeof "char *"))
    list[0] = ffi.C.strdup(common)
    for i, name in ipairs(names) do list[i] = ffi.C.strdup(name) end
    list[#names + 1] = nil
    return list
  end)
  -- versions differ in which of the two they look at
  lib.rl_completer_word_break_characters = BREAKS
  lib.rl_basic_word_break_characters = BREAKS
  lib.rl_attempted_completion_function = completer
  lib.rl_completion_append_character = 0

  local fd = ffi.new("weft_pollfd[1]", { { fd = 0, events = 1 } })
  local function wait(kind)
    got, ended, stopped, at_end = nil, nil, false, false
    lib.rl_callback_handler_install(prompts[kind], handler)
    while got == nil and not ended do
      local n = 1
      if not typed.waiting() then n = ffi.C.poll(fd, 1, -1) end
      if stop() then
        lib.rl_callback_handler_remove()
        typed.clear()
        io.write "^C\n"
        return INTERRUPTED
      end
      if n > 0 then
        if not typed.waiting() and bit.band(fd[0].revents, 1) == 0 then return nil end -- hung up
        lib.rl_callback_read_char()
        if at_end and not stopped then return nil end
      end
    end
    if ended then
      io.write "\n"
      return nil
    end
    return got
  end
  local function read(kind)
    if brackets then io.write(keys.ON) io.flush() end
    local line = wait(kind)
    if brackets then io.write(keys.OFF) io.flush() end
    if type(line) == "string" and line:find "%S" and line ~= last then
      lib.add_history(line)
      remember(line)
      last = line
    end
    return line, line ~= nil and typed.more()
  end
  jit.off(true, true) -- callbacks must not come out of compiled code
  return read
end

---A reader of lines: reader(kind) with kind 1 (a new input) or 2 (its continuation) returns a line,
---nil at the end, or INTERRUPTED after Ctrl-C; and whether the next line was pasted with it.
---@param options table  prompts, interactive, plain, interrupted (function), complete (function of the line
---  before a word and the word: the words that it may become, or a text to be shown)
---@return function
function M.reader(options)
  if not options.interactive then return plain() end
  if not options.plain then
    for _, name in ipairs { "libedit.so.2", "libedit.so.0", "libedit.so" } do
      local ok, lib = pcall(ffi.load, name)
      if ok then return edited(lib, options.prompts, options.interrupted, options.complete) end
    end
  end
  return plain(options.prompts, options.interrupted)
end

return M
