-- hub.lua: Hugging Face's cache on this machine: where its tools keep models, and what is in it. Nothing
-- here uses the network; fetch.lua does.
local M = {}

local function variable(name)
  local v = os.getenv(name)
  return v ~= "" and v or nil
end

---The folder of the cache, by HF_HUB_CACHE, HUGGINGFACE_HUB_CACHE, HF_HOME, XDG_CACHE_HOME or HOME.
---@return string
function M.cache()
  local home = variable "HF_HOME" or (variable "XDG_CACHE_HOME" or (os.getenv "HOME" or "") .. "/.cache") .. "/huggingface"
  return variable "HF_HUB_CACHE" or variable "HUGGINGFACE_HUB_CACHE" or home .. "/hub"
end

---Whether this can be the name of a model on a hub: "model" or "owner/model".
---@param name any
function M.is_name(name)
  if type(name) ~= "string" or #name > 200 or name:find("..", 1, true) then return false end
  local part = "[%w_][%w%-_.]*"
  return name:find("^" .. part .. "$") ~= nil or name:find("^" .. part .. "/" .. part .. "$") ~= nil
end

---The folder of a model in the cache, there or not.
---@param name string
function M.folder(name) return ("%s/models--%s"):format(M.cache(), (name:gsub("/", "--"))) end

---Whether a revision (a branch, a tag, refs/pr/1 or a commit) is one that can be written down.
function M.is_revision(text)
  return type(text) == "string" and text:find "^[%w][%w%-_./]*$" ~= nil and not text:find("..", 1, true) and not text:find "//"
    and text:sub(-1) ~= "/"
end

---The directory of a model as the cache has it; nil where it has none.
---@param name string
---@param revision? string  "main"
---@return string? dir
function M.find(name, revision)
  revision = revision or "main"
  if not M.is_name(name) or not M.is_revision(revision) then return nil end
  local disk = require "weft.files"
  local folder = M.folder(name)
  local text = disk.read(folder .. "/refs/" .. revision)
  local commit = text and text:match "^%s*(%x+)%s*$" or revision
  local dir = folder .. "/snapshots/" .. commit
  return disk.is_dir(dir) and dir or nil
end

return M
