-- adapter.lua: `weft adapter`: what can be done to an adapter directory by itself.
local M = {
  summary = "translate an adapter directory between generations of transformers",
  usage = "convert DIR OUT",
  about = "transformers 5 renamed modules, so that adapters of one generation do not load in the other. `both` loads in either.",
  options = { { "dialect", "both, transformers4 or transformers5", value = "NAME", default = "both" } },
  examples = { "weft adapter convert old-adapter new-adapter", "weft adapter convert mine theirs --dialect transformers5" },
}

local NAMES = { both = "transformers 4 and 5", transformers4 = "transformers 4", transformers5 = "transformers 5" }

function M.run(args)
  if args[1] ~= "convert" or #args ~= 3 then error({ usage = "convert DIR OUT is expected" }, 0) end
  if args[2] == args[3] then error({ usage = "OUT must be another directory than DIR" }, 0) end
  local files = require "weft.files"
  if not files.exists(args[2]) then error(args[2] .. ": there is no such directory", 0) end
  if not files.exists(args[2] .. "/adapter_config.json") then error(args[2] .. " holds no adapter: there is no adapter_config.json in it", 0) end
  if files.exists(args[3] .. "/adapter_config.json") then
    error(args[3] .. " holds an adapter already: name another folder, or remove it first", 0)
  end
  local n = require("weft.peft.convert").convert(args[2], args[3], { dialect = args.dialect })
  print(("%s: %d modules, by the names of %s"):format(args[3], n, NAMES[args.dialect or "both"]))
  return 0
end

return M
