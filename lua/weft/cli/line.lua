-- line.lua: lines from whoever types: edited by libedit on a terminal, plain from a pipe or where
-- libedit is missing. Keeps the history file.
local ffi = require "ffi"
local bit = require "bit"

ffi.cdef [[
int isatty(int fd);
typedef struct weft_pollfd { int fd; short events, revents; } weft_pollfd;
int poll(weft_pollfd *fds, unsigned long n, int timeout);
void *malloc(size_t n);
void free(void *p);
char *strdup(const char *s);
void rl_callback_handler_install(const char *prompt, void (*handler)(char *));
void rl_callback_handler_remove(void);
void rl_callback_read_char(void);
int add_history(const char *line);
void stifle_history(int n);
extern const char *rl_completer_word_break_characters;
extern char **(*rl_attempted_completion_function)(const char *, int, int);
extern int rl_attempted_completion_over;
extern const char *rl_readline_name;
extern char *rl_line_buffer;
extern int rl_completion_append_character;
int rl_on_new_line(void);
int rl_forced_update_display(void);
]]

local M = {}

local KEPT = 2000
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

-- libedit's readline face in its callback form: poll returns at a signal, where its blocking form
-- would swallow Ctrl-C.
local function edited(lib, prompts, interrupted, complete, arguments)
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
    local before = start > 0 and ffi.string(lib.rl_line_buffer, start):sub(-1) or ""
    if before == '"' or before == "'" then return nil end -- inside a string: libedit completes paths
    lib.rl_attempted_completion_over = 1
    if before == "(" and arguments and ffi.string(text) == "" then
      local fine, shown = pcall(arguments, ffi.string(lib.rl_line_buffer, start - 1))
      if fine and shown then
        io.write("\n", shown, "\n")
        io.flush()
        pcall(function()
          lib.rl_on_new_line()
          lib.rl_forced_update_display()
        end)
        return nil
      end
    end
    local ok, names = pcall(complete, ffi.string(text))
    if not ok or #names == 0 then return nil end
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
  lib.rl_completer_word_break_characters = " \t\n\"'`@$><=;|&{}()[]+-*/^%#,~!?"
  lib.rl_attempted_completion_function = completer
  lib.rl_completion_append_character = 0

  local fd = ffi.new("weft_pollfd[1]", { { fd = 0, events = 1 } })
  local function read(kind)
    got, ended = nil, nil
    lib.rl_callback_handler_install(prompts[kind], handler)
    while got == nil and not ended do
      local n = ffi.C.poll(fd, 1, -1)
      if interrupted() then
        lib.rl_callback_handler_remove()
        io.write "^C\n"
        return INTERRUPTED
      end
      if n > 0 then
        if bit.band(fd[0].revents, 1) == 0 then return nil end -- hung up
        lib.rl_callback_read_char()
      end
    end
    if ended then
      io.write "\n"
      return nil
    end
    if got:find "%S" and got ~= last then
      lib.add_history(got)
      remember(got)
      last = got
    end
    return got
  end
  jit.off(read, true) -- callbacks must not come out of compiled code
  return read
end

---A reader of lines: reader(kind) with kind 1 (a new input) or 2 (its continuation) returns a line,
---nil at the end, or INTERRUPTED after Ctrl-C.
---@param options table  prompts, interactive, plain, interrupted (function), complete (function), arguments (function)
---@return function
function M.reader(options)
  if not options.interactive then return plain() end
  if not options.plain then
    for _, name in ipairs { "libedit.so.2", "libedit.so.0", "libedit.so" } do
      local ok, lib = pcall(ffi.load, name)
      if ok then return edited(lib, options.prompts, options.interrupted, options.complete, options.arguments) end
    end
  end
  return plain(options.prompts, options.interrupted)
end

return M
