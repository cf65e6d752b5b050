-- fetch_spec.lua: `weft fetch` against a server on loopback that cuts, lies, refuses and sends elsewhere: the
-- cache it leaves is the one that Hugging Face's tools make, and from_pretrained finds it.
local run = require "tests.support.command"
local weft = require "weft"
local files = require "weft.files"
local hub = require "weft.io.hub"
local json = require "weft.io.json"

local commit = ("0123456789"):rep(4)
local golden = "tests/golden/dinov2_mlp/"

local function shell(command)
  local p = io.popen(command)
  local text = p:read "*a"
  p:close()
  return (text:gsub("%s+$", ""))
end

local function literal(v)
  if type(v) ~= "table" then return type(v) == "string" and ("%q"):format(v) or tostring(v) end
  local out = {}
  for k, x in pairs(v) do out[#out + 1] = ("[%s] = %s"):format(literal(k), literal(x)) end
  return "{" .. table.concat(out, ", ") .. "}"
end

-- slow: not under the sanitizers, whose preloaded library curl hangs with; all of it is Lua
describe("weft fetch #slow", function()
  local folder, remove, server, pid, port, sum, weights
  local api = "/api/models/someone/tiny/revision/main"
  local at = "/someone/tiny/resolve/" .. commit .. "/"

  setup(function()
    folder, remove = run.folder()
    server = folder .. "/server"
    assert(files.make_dirs(server))
    weights = files.read(golden .. "model.safetensors")
    sum = shell("sha256sum <" .. golden .. "model.safetensors"):match "%x+"
    assert(files.write(server .. "/rules.lua", "return {}"))
    -- without what a sanitized test process preloads: the server is no part of what is tested
    os.execute(("LD_PRELOAD= luajit tests/support/hub_server.lua %s >%s/out 2>&1 & echo $! >%s/pid"):format(server, server, server))
    for _ = 1, 100 do
      if files.exists(server .. "/port") then break end
      os.execute "sleep 0.05"
    end
    pid, port = files.read(server .. "/pid"):match "%d+", assert(files.read(server .. "/port"))
  end)
  teardown(function()
    os.execute("kill " .. pid)
    remove()
  end)

  local count = 0
  local function rules(list)
    count = count + 1
    for i, rule in ipairs(list) do rule.id = count .. "/" .. i end
    assert(files.write(server .. "/rules.lua", "return " .. literal(list)))
    os.remove(server .. "/log")
  end
  local function log() return files.read(server .. "/log") or "" end

  -- What an honest server has; `changes` come before it.
  local function model(changes, siblings)
    local list = {}
    for _, rule in ipairs(changes or {}) do list[#list + 1] = rule end
    local names = {}
    for i, name in ipairs(siblings or { "config.json", "model.safetensors", "pytorch_model.bin", "README.md", "onnx/model.onnx", "../escape.json" }) do
      names[i] = { rfilename = name }
    end
    list[#list + 1] = { path = api, body = json.encode { sha = commit, siblings = json.array(names) } }
    list[#list + 1] = { path = at .. "config.json", file = golden .. "config.json",
      headers = { ETag = 'W/"c0ffee"', ["X-Repo-Commit"] = commit } }
    list[#list + 1] = { path = at .. "model.safetensors", status = 302, headers = { Location = "/elsewhere/blob?sig=1",
      ["X-Linked-Etag"] = '"' .. sum .. '"', ["X-Linked-Size"] = #weights, ETag = '"other"' } }
    list[#list + 1] = { path = "/elsewhere/blob?sig=1", file = golden .. "model.safetensors" }
    rules(list)
  end

  local home
  local function fetch(words, environment)
    return run.run(("HF_HUB_OFFLINE= HF_ENDPOINT=http://127.0.0.1:%s/ HF_HOME=%s %s bin/weft fetch %s"):format(
      port, home, environment or "", words or "someone/tiny"))
  end
  before_each(function()
    home = folder .. "/home" .. count
    assert(files.make_dirs(home))
  end)
  local function cache() return home .. "/hub/models--someone--tiny" end

  it("leaves what Hugging Face's tools leave: blobs, names for them, the commit of a revision", function()
    model()
    local code, out, err = fetch()
    assert.equal(0, code, err)
    local dir = cache() .. "/snapshots/" .. commit
    assert.equal(dir .. "\n", out)
    assert.equal(commit, files.read(cache() .. "/refs/main"))
    assert.equal("../../blobs/" .. sum, shell("readlink " .. dir .. "/model.safetensors"))
    assert.equal("../../blobs/c0ffee", shell("readlink " .. dir .. "/config.json"))
    assert.same({ sum, "c0ffee" }, files.list(cache() .. "/blobs"))
    assert.same({ "config.json", "model.safetensors" }, files.list(dir))
    assert.equal(weights, files.read(dir .. "/model.safetensors"))
    -- a second time nothing is sent but questions
    model()
    code, out, err = fetch()
    assert.equal(0, code, err)
    assert.matches("model.safetensors: there already", err)
    assert.is_nil(log():find("GET " .. at, 1, true))
    assert.equal(dir .. "\n", out)
  end)

  it("fills the folder that HF_HUB_CACHE names, where from_pretrained finds the model", function()
    model()
    local code, _, err = fetch(nil, ("HF_HUB_CACHE=%s/own"):format(home))
    assert.equal(0, code, err)
    assert.is_true(files.exists(home .. "/own/models--someone--tiny/refs/main"))
    assert.is_false(files.exists(home .. "/hub"))
    local look = ("bin/weft run %s/look.lua"):format(home)
    assert(files.write(home .. "/look.lua", 'local weft = require "weft"\nprint(weft.models.dinov2.from_pretrained("someone/tiny").config.hidden_size)\n'))
    local found, text = run.run(("HF_HUB_CACHE=%s/own %s"):format(home, look))
    assert.equal(0, found)
    assert.matches("48", text)
    local missing, _, complaint = run.run(("HF_HUB_CACHE=%s/none %s"):format(home, look))
    assert.equal(1, missing)
    assert.matches("this downloads it:\n  weft fetch someone/tiny", complaint)
  end)

  it("goes on where a connection was cut", function()
    model { { path = "/elsewhere/blob?sig=1", file = golden .. "model.safetensors", cut = 10000, times = 2 } }
    local code, _, err = fetch()
    assert.equal(0, code, err)
    assert.matches("cut off after 10000 bytes; going on", err)
    assert.matches("range=bytes=10000%-", log())
    assert.matches("range=bytes=20000%-", log())
    assert.equal(weights, files.read(cache() .. "/snapshots/" .. commit .. "/model.safetensors"))
  end)

  it("keeps the part that came when it gives up, and the next call goes on from there", function()
    model { { path = "/elsewhere/blob?sig=1", file = golden .. "model.safetensors", cut = 5000, times = 1 },
      { path = "/elsewhere/blob?sig=1", drop = true } }
    local code, out, err = fetch(nil, "WEFT_FETCH_PAUSE=0")
    assert.equal(1, code)
    assert.equal("", out)
    assert.matches("the same command goes on from there", err)
    assert.equal(5000, files.size(cache() .. "/blobs/" .. sum .. ".incomplete"))
    assert.is_false(files.exists(cache() .. "/refs/main"))
    assert.is_false(files.exists(cache() .. "/snapshots/" .. commit .. "/model.safetensors"))
    model()
    code, out, err = fetch()
    assert.equal(0, code, err)
    assert.matches(commit, out)
    assert.matches("range=bytes=5000%-", log())
    assert.equal(weights, files.read(cache() .. "/snapshots/" .. commit .. "/model.safetensors"))
  end)

  it("begins again where a server cannot go on in the middle", function()
    model { { path = "/elsewhere/blob?sig=1", file = golden .. "model.safetensors", cut = 7000, times = 1 },
      { path = "/elsewhere/blob?sig=1", file = golden .. "model.safetensors", range = false } }
    local code, _, err = fetch(nil, "WEFT_FETCH_PAUSE=0")
    assert.equal(0, code, err)
    assert.equal(weights, files.read(cache() .. "/snapshots/" .. commit .. "/model.safetensors"))
  end)

  it("refuses a file of another size or of other bytes than promised, and keeps nothing of it", function()
    for _, case in ipairs {
      { body = weights:sub(1, -2), text = "sent %d+ bytes and promised %d+" },
      { body = weights .. "x", text = "sent %d+ bytes and promised %d+" },
      { body = "x" .. weights:sub(2), text = "its sha256 is %x+, and the server promised " .. sum },
    } do
      local path = home .. "/bad"
      assert(files.write(path, case.body))
      model { { path = "/elsewhere/blob?sig=1", file = path } }
      local code, _, err = fetch()
      assert.equal(1, code)
      assert.matches(case.text, err)
      assert.same({ "c0ffee" }, files.list(cache() .. "/blobs"))
      assert.is_false(files.exists(cache() .. "/refs/main"))
    end
  end)

  it("takes no page of an error for the file", function()
    model { { path = "/elsewhere/blob?sig=1", status = 503, body = "busy", times = 2 }, { path = "/elsewhere/blob?sig=1", status = 403, body = "no" } }
    local code, _, err = fetch(nil, "WEFT_FETCH_PAUSE=0")
    assert.equal(1, code)
    assert.matches("model.safetensors: the server refuses %(403%)", err)
    assert.same({ "c0ffee" }, files.list(cache() .. "/blobs"))
  end)

  it("says what a refusal means, and tells the token to nobody else", function()
    rules { { path = api, status = 401 } }
    local code, _, err = fetch(nil, "HF_TOKEN=")
    assert.equal(1, code)
    assert.matches("no such model, or it is private or gated: check the name, or set HF_TOKEN", err)
    code, _, err = fetch(nil, "HF_TOKEN=secret")
    assert.equal(1, code)
    assert.matches("HF_TOKEN has no access", err)
    assert.matches("auth=Bearer secret", log())
    assert.is_nil(err:find("secret", 1, true))
    rules { { path = api, status = 404 } }
    code, _, err = fetch()
    assert.equal(1, code)
    assert.matches("not found %(404%): check the name and the revision", err)
    -- localhost is another host than 127.0.0.1
    model { { path = at .. "model.safetensors", status = 302, headers = { Location = ("http://localhost:%s/elsewhere/blob?sig=1"):format(port),
      ["X-Linked-Etag"] = '"' .. sum .. '"', ["X-Linked-Size"] = #weights } } }
    code, _, err = fetch(nil, "HF_TOKEN=secret")
    assert.equal(0, code, err)
    assert.matches("GET /elsewhere/blob%?sig=1 range= auth=\n", log())
  end)

  it("follows a model that was renamed, and tries again where the server is busy", function()
    model { { path = api, status = 503, times = 1 }, { path = at .. "config.json", status = 503, times = 1 },
      { path = at .. "config.json", status = 307, headers = { Location = "/new/name/config.json" } },
      { path = "/new/name/config.json", file = golden .. "config.json", headers = { ETag = '"beef"' } } }
    local code, _, err = fetch(nil, "WEFT_FETCH_PAUSE=0")
    assert.equal(0, code, err)
    assert.equal("../../blobs/beef", shell("readlink " .. cache() .. "/snapshots/" .. commit .. "/config.json"))
    model { { path = at .. "config.json", status = 307, headers = { Location = at .. "config.json" } } }
    code, _, err = fetch()
    assert.equal(1, code)
    assert.matches("more than 5 redirects", err)
  end)

  it("takes the revision asked for", function()
    model()
    local code, _, err = fetch "someone/tiny --revision refs/pr/1"
    assert.equal(1, code)
    assert.matches("someone/tiny at refs/pr/1: not found", err)
    assert.matches("/revision/refs%%2Fpr%%2F1", log())
    model { { path = "/api/models/someone/tiny/revision/v1", body = json.encode { sha = commit, siblings = json.array { { rfilename = "config.json" },
      { rfilename = "model.safetensors" } } } } }
    assert.equal(0, (fetch "someone/tiny --revision v1"))
    assert.equal(commit, files.read(cache() .. "/refs/v1"))
    assert.is_false(files.exists(cache() .. "/refs/main"))
  end)

  it("refuses names that are none, models without safetensors, and to go online when told not to", function()
    for _, name in ipairs { "../etc", "a/b/c", "a..b", "/tmp", "'a b'" } do
      local code, _, err = fetch(name)
      assert.equal(2, code, name)
      assert.matches("no name of a model", err)
    end
    model({}, { "config.json", "pytorch_model.bin" })
    local code, _, err = fetch()
    assert.equal(1, code)
    assert.matches("no safetensors file, only pytorch_model.bin", err)
    rules {}
    code, _, err = fetch(nil, "HF_HUB_OFFLINE=1")
    assert.equal(1, code)
    assert.matches("HF_HUB_OFFLINE", err)
    assert.equal("", log())
    code, _, err = fetch(nil, "HF_ENDPOINT=http://127.0.0.1:1 WEFT_FETCH_PAUSE=0")
    assert.equal(1, code)
    assert.matches("the server cannot be reached (http://127.0.0.1:1; HF_ENDPOINT names another)", err, 1, true)
    code, _, err = fetch(nil, "HF_ENDPOINT=127.0.0.1:1")
    assert.equal(1, code)
    assert.matches("HF_ENDPOINT: an address that begins with http:// or https:// is expected, got 127.0.0.1:1", err, 1, true)
  end)

  it("looks up names as they are laid out", function()
    assert.is_true(hub.is_name "facebook/dinov2-base" and hub.is_name "gpt2")
    assert.is_false(hub.is_name "a/../b" or hub.is_name "-x" or hub.is_name "" or hub.is_name(".."))
    assert.is_true(hub.is_revision "main" and hub.is_revision "refs/pr/1" and not hub.is_revision "../x" and not hub.is_revision "a b")
    assert.matches("/models%-%-a%-%-b$", hub.folder "a/b")
    assert.is_nil((weft.io.hub.find "nobody/nothing"))
  end)
end)
