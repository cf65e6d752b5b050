-- style.lua: how a page looks, and the script that shows a line's values under the pointer. Both stand in
-- the page itself: nothing is loaded.
local M = {}

M.colors = {
  light = { "#1f63c4", "#c9550a", "#0b7f56", "#94379a", "#8a6a00", "#c0283f", "#0f7d8c", "#5b5f6b" },
  dark = { "#74aaff", "#ff9d57", "#49cf9d", "#d891e3", "#dfbb52", "#ff7c8b", "#55cbdb", "#a9aebb" },
}

local function variables(colors)
  local out = {}
  for i, c in ipairs(colors) do out[i] = ("--c%d:%s"):format(i, c) end
  return table.concat(out, ";")
end

local light = "color-scheme:light;--bg:#fff;--fg:#1b1f27;--soft:#5c6370;--rule:#e2e5ea;--panel:#f6f7f9;--shade:#0003;" .. variables(M.colors.light)
local dark = "color-scheme:dark;--bg:#14161a;--fg:#e7e9ee;--soft:#9aa1ae;--rule:#2f343d;--panel:#1c1f25;--shade:#fff3;" .. variables(M.colors.dark)

local function series()
  local out = {}
  for i = 1, 8 do
    out[i] = (".line.c%d,.bar.c%d{stroke:var(--c%d)}.dot.c%d,.fill.c%d{fill:var(--c%d)}.key .c%d{background:var(--c%d)}")
      :format(i, i, i, i, i, i, i, i)
  end
  return table.concat(out, "\n")
end

-- What charts need wherever they stand.
M.chart = [[
svg{display:block;width:100%;height:auto;overflow:visible}
svg text{font:11px system-ui,sans-serif} svg text:not(.value){fill:var(--soft)}
svg .note{font-size:10px;paint-order:stroke;stroke:var(--bg);stroke-width:3px}
.grid{stroke:var(--rule);stroke-width:1} .axis{stroke:var(--soft);stroke-width:1}
.line{fill:none;stroke-width:1.6;stroke-linejoin:round} .faint{opacity:.32;stroke-width:1}
.mark{stroke:var(--soft);stroke-dasharray:4 3} .ref{stroke:var(--soft);stroke-dasharray:1 3}
.cross{stroke:var(--fg);opacity:0} .bar{stroke:var(--c1);stroke-width:1.5} .dot{stroke:var(--bg);stroke-width:1}
.cell{stroke:none} .cell.best{stroke:var(--c2);stroke-width:3} svg .value{font-weight:600}
]] .. series()
M.page = ":root{" .. light .. "}\n@media (prefers-color-scheme:dark){:root{" .. dark .. "}}\n@media print{:root{" .. light .. "}}\n" .. [[
*{box-sizing:border-box}
body{margin:0 auto;max-width:84rem;padding:1rem 1rem 4rem;background:var(--bg);color:var(--fg);font:15px/1.5 system-ui,sans-serif}
h1{font-size:1.45rem;margin:.6rem 0 .2rem;overflow-wrap:anywhere} h2{font-size:1.15rem;margin:2.2rem 0 .6rem;border-bottom:1px solid var(--rule)}
h3{font-size:1rem;margin:1.2rem 0 .3rem} p{margin:.4rem 0;max-width:60rem} small,.soft{color:var(--soft)}
code,pre{font:13px/1.45 ui-monospace,monospace} pre{white-space:pre-wrap;overflow-wrap:anywhere;background:var(--panel);padding:.7rem}
nav{margin-top:.8rem;display:flex;flex-wrap:wrap;gap:.2rem 1rem;font-size:.9rem} a{color:var(--c1)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(9.5rem,1fr));gap:.6rem;margin:1rem 0}
.tile{background:var(--panel);padding:.6rem .8rem;border-radius:6px} .tile b{display:block;font-size:1.3rem;line-height:1.25;overflow-wrap:anywhere}
.tile span{color:var(--soft);font-size:.85rem}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(21rem,100%),1fr));gap:1.2rem 1.6rem}
figure{margin:0;min-width:0;break-inside:avoid} figcaption{font-weight:600;margin-bottom:.2rem}
figcaption small{font-weight:400;color:var(--soft)}
.legend{display:flex;flex-wrap:wrap;gap:.1rem 1rem;font-size:.85rem;margin:.2rem 0 .2rem 0}
.key i{display:inline-block;width:.9em;height:.9em;border-radius:2px;margin-right:.35em;vertical-align:-.1em}
/* what is scrolled away throws a shadow at that edge */
.wide{overflow-x:auto;background:linear-gradient(to right,var(--bg) 40%,transparent) left/2.4rem 100% no-repeat local,
linear-gradient(to left,var(--bg) 40%,transparent) right/2.4rem 100% no-repeat local,
linear-gradient(to right,var(--shade),transparent) left/.9rem 100% no-repeat scroll,
linear-gradient(to left,var(--shade),transparent) right/.9rem 100% no-repeat scroll} table{border-collapse:collapse;font-size:.9rem;margin:.3rem 0}
th,td{padding:.22rem .7rem;text-align:left;border-bottom:1px solid var(--rule);vertical-align:top;font-weight:400}
thead th{font-weight:600;border-bottom:2px solid var(--rule);vertical-align:bottom} .n{text-align:right;font-variant-numeric:tabular-nums}
td.n,th[scope=row]{white-space:nowrap} td{min-width:5.2rem} td.n{min-width:0}
tr.best{background:var(--panel)} tr.best th,tr.best td{font-weight:600} tr.chance{color:var(--soft)}
.samples{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(15rem,100%),1fr));gap:1rem}
.sample{break-inside:avoid;background:var(--panel);padding:.6rem;border-radius:6px;overflow-wrap:anywhere}
.sample img{display:block;max-width:100%;height:9rem;object-fit:contain;margin:0 auto .4rem;background:#fff}
.sample p{margin:.15rem 0} .sample span{display:inline-block;color:var(--soft);font-size:.8rem;margin-right:.4em}
details{margin:.5rem 0} summary{cursor:pointer;color:var(--soft)}
.tip{position:fixed;z-index:9;pointer-events:none;background:var(--bg);color:var(--fg);border:1px solid var(--soft);border-radius:5px;
padding:.3rem .5rem;font-size:.8rem;box-shadow:0 2px 8px #0004;max-width:18rem} .tip b{display:block} .tip .key{display:block}
@media (max-width:40rem){th,td{padding:.22rem .4rem} th:first-child{padding-left:0}}
svg:focus{outline:2px solid var(--c1);outline-offset:2px}
@media print{body{max-width:none;padding:0;font-size:10pt} nav,.tip{display:none} .charts{grid-template-columns:1fr 1fr}
.samples{grid-template-columns:repeat(4,1fr)} h2,h3,.legend{break-after:avoid}
.wide{break-inside:avoid} details .wide{break-inside:auto} tr{break-inside:avoid} .wide{overflow:visible;background:none}
.key i,tr.best,.sample img{-webkit-print-color-adjust:exact;print-color-adjust:exact}
.tile{border:1px solid var(--rule)}}
]] .. M.chart

-- The pointer, a finger or the arrow keys choose a step; the nearest value of each line is shown.
M.script = [[
(() => {
  const tip = document.createElement("div");
  tip.className = "tip"; tip.hidden = true; document.body.append(tip);
  const short = (v) => Math.abs(v) >= 1e6 || (v !== 0 && 1e-3 > Math.abs(v)) ? v.toExponential(3) : String(+v.toPrecision(6));
  const nearest = (xs, x) => {
    let low = 0, high = xs.length - 1;
    while (high - low > 1) { const mid = (low + high) >> 1; if (xs[mid] > x) high = mid; else low = mid; }
    return Math.abs(xs[low] - x) > Math.abs(xs[high] - x) ? high : low;
  };
  for (const figure of document.querySelectorAll("figure.lines")) {
    const data = JSON.parse(figure.querySelector("script").textContent);
    const svg = figure.querySelector("svg"), cross = svg.querySelector(".cross");
    const [left, , width] = data.frame, [low, high] = data.x;
    let at = low;
    const show = (x, clientX, clientY) => {
      let best = null;
      for (const s of data.series) {
        const k = nearest(s.x, x);
        if (best === null || Math.abs(best - x) > Math.abs(s.x[k] - x)) best = s.x[k];
      }
      if (best === null) return;
      at = best;
      const px = left + width * (best - low) / (high - low || 1);
      cross.setAttribute("x1", px); cross.setAttribute("x2", px); cross.style.opacity = 0.5;
      tip.replaceChildren();
      const head = document.createElement("b");
      head.textContent = data.name + " " + short(best); tip.append(head);
      for (const s of data.series) {
        const k = nearest(s.x, best);
        if (Math.abs(s.x[k] - best) > (high - low) / 50) continue;
        const row = document.createElement("span"), dot = document.createElement("i");
        row.className = "key"; dot.className = "c" + s.c;
        row.append(dot, (data.series.length > 1 ? s.name + "  " : "") + short(s.y[k]));
        tip.append(row);
      }
      tip.hidden = false;
      const box = tip.getBoundingClientRect();
      tip.style.left = Math.max(4, Math.min(clientX + 14, innerWidth - box.width - 4)) + "px";
      tip.style.top = Math.max(4, clientY - box.height - 14) + "px";
    };
    const hide = () => { tip.hidden = true; cross.style.opacity = 0; };
    const point = (event) => {
      const box = svg.getBoundingClientRect();
      const px = (event.clientX - box.left) * data.width / box.width;
      show(low + (px - left) / width * (high - low), event.clientX, event.clientY);
    };
    svg.addEventListener("pointermove", point);
    svg.addEventListener("pointerdown", point);
    svg.addEventListener("pointerleave", hide);
    svg.tabIndex = 0;
    svg.addEventListener("blur", hide);
    svg.addEventListener("keydown", (event) => {
      const way = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!way || data.series.length === 0) return;
      event.preventDefault();
      const xs = data.series[0].x, k = Math.max(0, Math.min(xs.length - 1, nearest(xs, at) + way));
      const box = svg.getBoundingClientRect();
      show(xs[k], box.left + (left + width * (xs[k] - low) / (high - low || 1)) * box.width / data.width, box.top + 30);
    });
  }
  addEventListener("beforeprint", () => { for (const d of document.querySelectorAll("details")) d.open = true; });
})();
]]

return M
