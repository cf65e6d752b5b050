-- export.lua: `weft export`: what a run trained, as directories that other programs load.
local M = {
  summary = "a run's models as directories for transformers, and as one of weft's",
  usage = "RUN DIR",
  about = "DIR/encoder: DINOv2 with the adapters merged, for AutoModel. DIR/language: LLaMA with its tokenizer, for "
    .. "AutoModelForCausalLM. DIR/whole: everything in one file, as docs/files.md lays out.",
  options = { { "force", "also where the adapter changes nothing" } },
  examples = { "weft export runs/stage1/2026-11-22-a exported", "weft export RUN exported --force" },
}

function M.run(args)
  if #args ~= 2 then error({ usage = "a run and a directory are expected" }, 0) end
  local weft = require "weft"
  local dir = args[2]
  local run, message = weft.train.open(args[1], { quiet = true, for_use = true })
  if not run then error(message, 0) end
  local model, data = run.model:eval(), run.data
  local export = require "weft.models.export"
  local o = data.train and data.train.options or {}
  local preprocessing = o.resize and { resize = require("weft.data.captioned").resize_of(o), size = o.size, mean = o.mean, std = o.std } or nil
  local function write()
    if model.vision then
      if not args.force then
        require("weft.peft.merge").refuse_idle(model.vision, dir, "the base would be exported; --force does it all the same")
      end
      local difference, note = export.encoder(model.vision, dir .. "/encoder", { preprocessing = preprocessing, force = true })
      print(("%s/encoder: merged; a picture's features differ by at most %.2g from those with the adapter beside"):format(dir, difference))
      if note then print("  " .. note) end
    end
    if model.language then
      export.language(model.language, dir .. "/language", { tokenizer = data.tokenizer, special = data.special })
      print(("%s/language: %s"):format(dir, data.tokenizer and "with its tokenizer" or "without a tokenizer"))
    end
    local record = assert(require("weft.io.json").read(run.dir .. "/config.json"))
    export.whole(model, dir .. "/whole", { config = record.config, special = data.special, tokenizer = data.tokenizer,
      preprocessing = preprocessing, skip = { "queue.", "momentum.", "average." } })
    print(("%s/whole"):format(dir))
  end
  -- the weights that its scores were made with
  if model.averaged then model:averaged(write) else write() end
  return 0
end

return M
