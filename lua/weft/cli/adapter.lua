-- adapter.lua: `weft adapter`: what can be done to an adapter directory by itself.
local M = {
  summary = "translate an adapter directory between generations of transformers",
  usage = "convert DIR OUT",
  about = "transformers 5 renamed modules, so that adapters of one generation do not load in the other. `both` loads in either.",
  options = { { "dialect", "both, transformers4 or transformers5", value = "NAME", default = "both" } },
  examples = { "weft adapter convert old-adapter new-adapter", "weft adapter convert mine theirs --dialect transformers5" },
}

function M.run(args)
  if args[1] ~= "convert" or #args ~= 3 then error({ usage = "convert DIR OUT is expected" }, 0) end
  if args[2] == args[3] then error({ usage = "OUT must be another directory than DIR" }, 0) end
  local n = require("weft.peft.convert").convert(args[2], args[3], { dialect = args.dialect })
  print(("%s: %d modules, %s"):format(args[3], n, args.dialect or "both"))
  return 0
end

return M
