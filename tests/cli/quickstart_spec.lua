-- quickstart_spec.lua: bin/quickstart where something is missing: it names it and stops, installs with sudo,
-- and never begins what it can't end.
local command = require "tests.support.command"
local tiny = require "tests.support.tiny"

describe("bin/quickstart", function()
  local work, remove
  before_each(function()
    work, remove = command.folder()
    -- only what a bare system has, and stand-ins that say what they were asked
    assert.equal(0, os.execute(("mkdir %s/bin %s/home"):format(work, work)))
    for _, name in ipairs { "sh", "bash", "env", "dirname", "mktemp", "rm", "cat", "tail", "cut", "find", "wc", "df", "awk", "stat", "mkdir",
      "chmod", "sha256sum", "sed" } do
      os.execute(("ln -s $(command -v %s) %s/bin/%s"):format(name, work, name))
    end
  end)
  after_each(function() remove() end)

  local function stand_in(name, text)
    tiny.write(("%s/bin/%s"):format(work, name), "#!/bin/sh\n" .. text .. "\n")
    assert.equal(0, os.execute(("chmod +x %s/bin/%s"):format(work, name)))
  end
  local function note(name, more) stand_in(name, ('echo "%s $*" >>%s/asked\n%s'):format(name, work, more or "")) end
  local function asked() return (tiny.read(work .. "/asked")) end

  -- uid of who runs it; packages that are missing, all if nil
  local function run(uid, missing)
    tiny.write(work .. "/asked", "")
    stand_in("id", "echo " .. uid)
    local list = missing and table.concat(missing, "|") or "*"
    -- dpkg-query -W -f FORMAT PACKAGE
    stand_in("dpkg-query", ("case $4 in %s) exit 1 ;; esac\necho installed"):format(list))
    note "apt-get"
    note("cmake", "echo no compiler; exit 1")
    return command.run(("env -i HOME=%s/home PATH=%s/bin bash bin/quickstart"):format(work, work))
  end

  it("names what is missing and stops, for a user without sudo", function()
    local code, out, err = run(1000, { "luajit", "libstb-dev" })
    assert.equal(1, code)
    assert.truthy(out:find "packages +missing\n$", out)
    assert.truthy(err:find("These Debian packages are missing, and neither root nor sudo is at hand", 1, true), err)
    local named = err:match "apt%-get install %-%-no%-install%-recommends ([^\n]*)"
    assert.equal("luajit libstb-dev", named)
    assert.equal("", asked())
    local _, left = command.run(("ls -A %s/home"):format(work))
    assert.equal("", left)
  end)

  it("names all of a bare machine's", function()
    local _, _, err = run(1000)
    err = err:gsub("\n", " ") .. " "
    for _, package in ipairs { "gcc", "cmake", "ninja-build", "luajit", "libopenblas-dev", "libjansson-dev", "libpcre2-dev", "libstb-dev" } do
      assert.truthy(err:find(" " .. package .. " ", 1, true), package)
    end
  end)

  it("installs what is missing with sudo where it needs no password, and as root", function()
    for _, case in ipairs { { 1000, "sudo" }, { 0, "root" } } do
      os.remove(work .. "/bin/sudo")
      if case[2] == "sudo" then stand_in("sudo", 'if [ "$1" = -n ]; then exit 0; fi\nexec "$@"') end
      local code, out, err = run(case[1], { "luajit" })
      assert.truthy(asked():find("apt-get -q -y install --no-install-recommends luajit\n", 1, true), case[2] .. ": " .. asked() .. err)
      -- and goes on to build, which says what it said
      assert.equal(1, code)
      assert.truthy(out:find "packages +all there" and out:find "build +failed", out)
      assert.truthy(err:find("no compiler", 1, true), err)
    end
  end)

  it("asks for nothing where all is there", function()
    local _, out = run(1000, { "none" })
    assert.truthy(out:find "packages +all there")
    assert.is_nil(asked():find("apt-get", 1, true))
  end)
end)
