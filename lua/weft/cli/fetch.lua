-- fetch.lua: `weft fetch`: a model from a hub into Hugging Face's cache.
local M = {
  summary = "download a model into Hugging Face's cache",
  usage = "NAME",
  about = "NAME is as on the hub: owner/model. Only safetensors, json and tokenizer files are taken. What is there already "
    .. "stays; what was cut off goes on. HF_HOME and HF_HUB_CACHE say where the cache is, HF_ENDPOINT which server is asked, HF_TOKEN "
    .. "opens private models. Nothing else in weft downloads models.",
  options = { { "revision", "a branch, a tag or a commit", value = "NAME", default = "main" } },
  examples = { "weft fetch facebook/dinov2-small", "weft fetch facebook/dinov2-base --revision main" },
}

function M.run(args)
  if #args ~= 1 then error({ usage = "the name of one model is expected" }, 0) end
  if not require("weft.io.hub").is_name(args[1]) then
    error({ usage = ("%s is no name of a model; one looks like facebook/dinov2-small"):format(args[1]) }, 0)
  end
  local dir, message = require("weft.io.fetch").fetch(args[1], { revision = args.revision or "main",
    progress = require("weft.core").lib.weft_is_terminal(2), say = function(...)
    io.stderr:write((...):format(select(2, ...)), "\n")
  end })
  if not dir then error(message, 0) end
  print(dir)
  return 0
end

return M
