-- html.lua: a report of runs as one page: self-contained, its charts drawn here. Parts of the page are in
-- html_sections.lua; what a run left is read by runs.lua.
local files = require "weft.files"
local markup = require "weft.report.markup"
local runs_of = require "weft.report.runs"
local style = require "weft.report.style"

local M = {}

local el = markup.el

-- The browser itself refuses whatever would be loaded from elsewhere.
local POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"

---A whole page.
---@param title string
---@param body any  elements
---@return string
function M.page(title, body)
  return "<!DOCTYPE html>\n" .. tostring(el("html", { lang = "en" },
    el("head", nil,
      el("meta", { charset = "utf-8" }),
      el("meta", { name = "viewport", content = "width=device-width, initial-scale=1" }),
      el("meta", { ["http-equiv"] = "Content-Security-Policy", content = POLICY }),
      el("title", nil, title),
      el("style", nil, markup.raw(style.page))),
    el("body", nil, body, el("script", nil, markup.raw(style.script))))) .. "\n"
end

---Sections of a page: those that have something to show, and links to them.
---@param list table[]  { id, title, content }
function M.sections(list)
  local links, out = {}, {}
  for _, s in ipairs(list) do
    if s[3] and (type(s[3]) ~= "table" or getmetatable(s[3]) or #s[3] > 0) then
      links[#links + 1] = el("a", { href = "#" .. s[1] }, s[2])
      out[#out + 1] = el("section", { id = s[1] }, el("h2", nil, s[2]), s[3])
    end
  end
  return { el("nav", nil, links), out }
end

---The page of one run, or of several side by side.
---@param dirs string[]  folders of runs
---@return string? html, string? message
function M.report(dirs)
  local runs = {}
  for i, dir in ipairs(dirs) do
    local run, message = runs_of.read(dir)
    if not run then return nil, message end
    runs[i] = run
  end
  runs_of.name_apart(runs)
  local s = require "weft.report.html_sections"
  local title = #runs == 1 and ("%s: %s"):format(runs[1].recipe, runs[1].name) or ("%d runs of %s"):format(#runs, s.recipes(runs))
  return M.page(title, { el("h1", nil, title), s.lead(runs), M.sections {
    { "scores", "Scores on held-out pictures", require("weft.report.scores").section(runs) },
    { "losses", "Losses", s.losses(runs) },
    { "samples", "Captions", s.samples(runs) },
    { "training", "Rates, gradients, throughput", s.training(runs) },
    { "config", "Settings", s.config(runs) },
    { "parameters", "Parameters and memory", s.parameters(runs) },
    { "environment", "Environment", s.environment(runs) },
  } })
end

---Writes the page of runs.
---@param dirs string[]
---@param path string
---@return true?, string? message
function M.write(dirs, path)
  local text, message = M.report(dirs)
  if not text then return nil, message end
  local ok, why = files.write(path, text)
  return ok, why
end

return M
