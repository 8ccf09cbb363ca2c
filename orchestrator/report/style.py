"""How the page looks: one column on a phone, a grid of charts on a desk, light or dark as the reader's system says."""

from __future__ import annotations

CSS = """
:root {
  color-scheme: light dark;
  --page: #f6f6f4; --card: #ffffff; --ink: #191a1c; --soft: #5b5f66; --faint: #8b9098; --rule: #e3e4e6; --grid: #ececee;
  --good: #16743f; --good-bg: #dff3e6; --wait: #8a5200; --wait-bg: #fdeccf; --none: #5b5f66; --none-bg: #e9eaec;
  --s0: #2a6fd0; --s1: #e2662f; --s2: #17a374; --s3: #d99a00; --s4: #c9558f; --s5: #6a5acd; --s6: #a3a7ae;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #121315; --card: #1b1d20; --ink: #e9eaec; --soft: #a9aeb6; --faint: #7c828b; --rule: #2d3035; --grid: #272a2e;
    --good: #7fd6a2; --good-bg: #173524; --wait: #f0be72; --wait-bg: #3b2b12; --none: #a9aeb6; --none-bg: #292c31;
    --s0: #5b9cf2; --s1: #ee8552; --s2: #3cc194; --s3: #e3b43d; --s4: #df7fb0; --s5: #9a8cf0; --s6: #70757d;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
main { max-width: 1240px; margin: 0 auto; padding: 28px 24px 64px; }
h1, h2, h3, p, dl, dd, ul, figure { margin: 0; }
h1 { font-size: 28px; line-height: 1.2; letter-spacing: -0.01em; overflow-wrap: anywhere; }
h2 { font-size: 20px; line-height: 1.3; overflow-wrap: anywhere; }
h3 { font-size: 15px; }
code, pre { font: 12.5px/1.55 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.soft { color: var(--soft); overflow-wrap: anywhere; }
.note { color: var(--soft); font-size: 13px; max-width: 86ch; }
.head { display: flex; flex-wrap: wrap; gap: 6px 12px; align-items: center; }
.badge { font-size: 12px; font-weight: 600; padding: 2px 10px; border-radius: 999px; white-space: nowrap; }
.badge.finished { color: var(--good); background: var(--good-bg); }
.badge.under-way { color: var(--wait); background: var(--wait-bg); }
.badge.not-begun { color: var(--none); background: var(--none-bg); }
.kind { color: var(--soft); font-size: 14px; }
section { margin-top: 40px; }
section > * + * { margin-top: 12px; }
.card { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; padding: 14px 16px; min-width: 0; }
.tiles { display: flex; flex-wrap: wrap; gap: 12px; margin-top: 20px; }
.tiles .card { flex: 1 1 140px; }
.tiles dt { color: var(--soft); font-size: 13px; }
.tiles dd { font-size: 19px; font-weight: 600; line-height: 1.3; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
.tiles .text { font-size: 15px; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(330px, 1fr)); gap: 14px; }
figure { display: flex; flex-direction: column; }
figure svg { margin-top: auto; }
figcaption { display: flex; flex-wrap: wrap; align-items: baseline; gap: 2px 10px; margin-bottom: 8px; }
figcaption .title { font-weight: 600; font-size: 14px; }
figcaption .unit { color: var(--faint); font-size: 12px; }
figcaption .last { margin-left: auto; font-weight: 600; font-variant-numeric: tabular-nums; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 12px; font-size: 12px; color: var(--soft); flex-basis: 100%; }
.legend span::before { content: ""; display: inline-block; width: 9px; height: 9px; border-radius: 3px; margin-right: 5px; }
.legend .s0::before { background: var(--s0); } .legend .s1::before { background: var(--s1); }
.legend .s2::before { background: var(--s2); } .legend .s3::before { background: var(--s3); }
.legend .s4::before { background: var(--s4); } .legend .s5::before { background: var(--s5); }
.legend .s6::before { background: var(--s6); }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { fill: var(--faint); font: 11px system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif; }
svg text { font-variant-numeric: tabular-nums; }
svg .grid { stroke: var(--grid); stroke-width: 1; }
svg .ideal { stroke: var(--faint); stroke-width: 1; stroke-dasharray: 4 4; }
svg .line { fill: none; stroke: var(--ink); stroke-width: 1.8; stroke-linejoin: round; stroke-linecap: round; }
svg .hit { fill: transparent; }
svg .hit:hover { fill: var(--faint); fill-opacity: 0.35; }
svg .bubble { fill: var(--s0); fill-opacity: 0.55; stroke: var(--s0); }
svg rect:hover { opacity: 0.75; }
svg .line.s0 { stroke: var(--s0); } svg .dot.s0, svg .fill.s0 { fill: var(--s0); }
svg .line.s1 { stroke: var(--s1); } svg .dot.s1, svg .fill.s1 { fill: var(--s1); }
svg .line.s2 { stroke: var(--s2); } svg .dot.s2, svg .fill.s2 { fill: var(--s2); }
svg .line.s3 { stroke: var(--s3); } svg .dot.s3, svg .fill.s3 { fill: var(--s3); }
svg .line.s4 { stroke: var(--s4); } svg .dot.s4, svg .fill.s4 { fill: var(--s4); }
svg .line.s5 { stroke: var(--s5); } svg .dot.s5, svg .fill.s5 { fill: var(--s5); }
svg .line.s6 { stroke: var(--s6); } svg .dot.s6, svg .fill.s6 { fill: var(--s6); }
.wide { overflow-x: auto; padding: 4px 0; }
table { border-collapse: collapse; width: 100%; font-size: 14px; font-variant-numeric: tabular-nums; }
th { color: var(--soft); font-weight: 500; font-size: 13px; text-align: left; white-space: nowrap; }
th, td { padding: 7px 16px; border-top: 1px solid var(--rule); vertical-align: top; }
tr:first-child > th { border-top: 0; }
td.number, th.number { text-align: right; white-space: nowrap; }
td a { font-weight: 600; }
a { color: var(--s0); text-decoration: none; }
a:hover { text-decoration: underline; }
.facts { display: flex; flex-wrap: wrap; gap: 8px 32px; font-variant-numeric: tabular-nums; }
.facts dt { color: var(--soft); font-size: 12.5px; line-height: 1.3; }
.facts dd { font-weight: 500; overflow-wrap: anywhere; }
.figures { font-size: 14px; font-variant-numeric: tabular-nums; }
.figures div { display: flex; gap: 16px; justify-content: space-between; padding: 5px 0; border-top: 1px solid var(--rule); }
.figures dt { color: var(--soft); }
.figures dd { font-weight: 500; }
.stack { max-width: 560px; }
.stack > * + * { margin-top: 10px; }
.exchange { margin-top: 12px; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(270px, 1fr)); gap: 12px; margin-top: 10px; }
.pair.alone { margin-top: 12px; }
.answer { border-left: 3px solid var(--rule); padding: 2px 0 2px 12px; min-width: 0; }
.answer.s0 { border-color: var(--s6); } .answer.s1 { border-color: var(--s0); } .answer.s2 { border-color: var(--s2); }
.who { display: flex; flex-wrap: wrap; gap: 2px 10px; align-items: center; font-size: 12.5px; color: var(--soft); }
.who .badge { font-size: 11px; padding: 0 8px; }
.who b { color: var(--ink); font-variant-numeric: tabular-nums; margin-left: auto; }
.said { white-space: pre-wrap; overflow-wrap: anywhere; }
.prompt { color: var(--soft); font-size: 14px; }
.empty { color: var(--faint); font-style: italic; }
summary { cursor: pointer; }
details.long > summary { list-style: none; }
details.long > summary::-webkit-details-marker { display: none; }
details.long > summary::after { content: " more"; color: var(--s0); font-size: 13px; }
details.long[open] > summary::after { content: "less"; }
details.long[open] > summary .clip { display: none; }
details.fold > summary { color: var(--s0); font-size: 14px; padding: 4px 0; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: 10px 0 0; }
.tree, .tree ul { list-style: none; padding-left: 0; font-size: 13.5px; }
.tree ul { border-left: 1px solid var(--rule); margin-left: 5px; padding-left: 14px; }
.tree li { margin-top: 3px; overflow-wrap: anywhere; }
.tree summary { font-weight: 500; }
footer { margin-top: 48px; color: var(--faint); font-size: 13px; overflow-wrap: anywhere; }
@media (max-width: 640px) {
  main { padding: 18px 14px 48px; }
  h1 { font-size: 23px; }
  section { margin-top: 32px; }
  .tiles { gap: 10px; }
  .tiles .broad { flex-basis: 100%; }
  .charts { grid-template-columns: minmax(0, 1fr); }
  .pair { grid-template-columns: minmax(0, 1fr); }
  .card { padding: 12px 12px; }
  th, td { padding: 6px 9px; }
  .stages tr:first-child { display: none; }
  .stages tr { display: grid; grid-template-columns: 1fr auto auto auto; border-top: 1px solid var(--rule); padding: 8px 6px; }
  .stages tr:nth-child(2) { border-top: 0; }
  .stages td { border-top: 0; padding: 2px 6px; }
  .stages .steps::after { content: " steps"; }
  .stages .minutes:not(:empty)::after { content: " min"; }
  .stages .result { grid-column: 1 / -1; color: var(--soft); }
  .compared th, .compared td { padding: 6px 5px; }
  .compared th { white-space: normal; vertical-align: bottom; }
  .compared th:nth-child(2), .compared td:nth-child(2) { display: none; }
}
@media print { body { background: #fff; } .card { break-inside: avoid; } }
"""
