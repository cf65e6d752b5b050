-- spectrum.lua: how much an adapter changes, module by module.
local A = require "weft.args"
local adapters = require "weft.peft.adapters"
local no_grad = require("weft.autograd").no_grad
local scope = require("weft.scope").scope
local ops = require("weft.ops").functions

local M = {}

---For each module of an adapter: path, |dW|, |W|, their ratio, and with values = true the singular
---values of dW, of which the table that it prints as has the largest.
---@param model table
---@param options? table adapter (the first), values (false)
---@return table[] rows
function M.spectrum(model, options)
  local record, holder = adapters.need(model, options and options.adapter, "spectrum")
  local o = A.options(options, { adapter = record.order[1], values = false }, "peft.spectrum")
  local rows = {}
  for path, m in adapters.wrapped(holder) do
    if m.is_lora and m.settings[o.adapter] then
      rows[#rows + 1] = no_grad(function()
        return (scope(function()
          local delta = m:delta(o.adapter)
          local base = m.kept and m.kept.weight or m.base_layer.weight
          local row = { path = path, delta = delta:norm():item(), weight = base:norm():item() }
          row.ratio = row.weight > 0 and row.delta / row.weight or 0
          if o.values then
            local _, s = ops.svd(delta)
            row.values = s:narrow(1, 1, math.min(m.settings[o.adapter].rank, s:size(1))):totable()
          end
          return row
        end))
      end)
    end
  end
  return setmetatable(rows, { __tostring = function()
    local out = {}
    for i, r in ipairs(rows) do
      out[i] = { r.path, ("%.5g"):format(r.delta), ("%.5g"):format(r.weight), ("%.3f %%"):format(100 * r.ratio) }
      if o.values then
        local first = {}
        for k = 1, math.min(4, #r.values) do first[k] = ("%.3g"):format(r.values[k]) end
        out[i][5] = table.concat(first, " ") .. (#r.values > 4 and " .." or "")
      end
    end
    return require("weft.probe.common").text({ "module", "|dW|", "|W|", "ratio", o.values and "singular values" or nil }, out)
  end })
end

return M
