"""The stylesheet and the script of a report. The script shows values under the pointer and switches between steps."""

from __future__ import annotations

from .plots import COLOURS

CSS = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1c2024; --quiet: #5b646e; --line: #dde1e6; --raised: #f5f7f9;
  --problem: #c0262d; --warning: #a85b00; --note: #2a62b0; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171a; --ink: #e4e7ea; --quiet: #98a2ad; --line: #30363d;
  --raised: #1c2126; --problem: #ff7b7b; --warning: #f0a04b; --note: #7db2f5; }
  .chart polyline.raw { opacity: .45 !important; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1.2rem 5rem; max-width: 74rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { margin: 0 0 1rem; font-size: 1.5rem; line-height: 1.25; overflow-wrap: anywhere; }
h2 { margin: 2.2rem 0 .7rem; padding-bottom: .25rem; border-bottom: 1px solid var(--line); font-size: 1.1rem; overflow-wrap: anywhere; }
h3 { margin: 1.8rem 0 .5rem; font-size: 1rem; }
h4 { margin: 1rem 0 .3rem; }
p { margin: .35rem 0; max-width: 50rem; }
small { color: var(--quiet); }
pre { margin: .4rem 0; padding: .6rem .8rem; background: var(--raised); border-radius: 6px; font: 13px/1.5 ui-monospace, monospace;
  white-space: pre-wrap; overflow-wrap: anywhere; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); gap: .6rem; }
.cards > div { padding: .6rem .8rem; background: var(--raised); border: 1px solid var(--line); border-radius: 8px; }
.cards b { display: block; font-size: 1.35rem; line-height: 1.3; font-variant-numeric: tabular-nums; }
.cards small { display: block; }
.fine, .about { color: var(--quiet); } .about { margin: -.6rem 0 1rem; }
.diagnoses { margin: 0; padding: 0; list-style: none; display: grid; gap: .6rem; }
.diagnoses li { padding: .6rem .9rem; background: var(--raised); border-left: 4px solid var(--mark); border-radius: 4px; }
.diagnoses .problem { --mark: var(--problem); } .diagnoses .warning { --mark: var(--warning); }
.diagnoses .note { --mark: var(--note); } .diagnoses b span { color: var(--mark); }
.diagnoses p { max-width: none; } .reason { color: var(--quiet); font-size: .87rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(21rem, 100%), 1fr)); gap: 1.2rem 1rem; }
.chart { position: relative; margin: 0; }
.chart figcaption { display: flex; flex-wrap: wrap; gap: 0 .9rem; align-items: baseline; font-size: .88rem; font-weight: 600; }
.chart svg[hidden] { display: none !important; } .chart svg:focus-visible { outline: 2px solid var(--note); outline-offset: 2px; }
.chart button { margin-left: auto; padding: 0 .5rem; border: 1px solid var(--line); border-radius: 6px; background: var(--raised);
  color: var(--quiet); font: inherit; font-weight: 400; cursor: pointer; }
.chart button[aria-pressed=true] { border-color: var(--note); color: var(--note); }
.chart svg { display: block; width: 100%; height: auto; overflow: visible; touch-action: pan-y; }
.chart text { fill: var(--quiet); font: 10.5px system-ui, sans-serif; font-variant-numeric: tabular-nums; }
.chart .grid { stroke: var(--line); stroke-width: 1; }
.chart .cursor { stroke: var(--quiet); stroke-width: 1; stroke-dasharray: 2 3; }
.chart .cursor[hidden] { display: none; }
.chart polyline { fill: none; stroke: var(--curve); stroke-width: 1.8; stroke-linejoin: round; }
.chart polyline.raw { stroke-width: 1; opacity: .28; }
.chart circle { fill: var(--curve); }
.chart .d1:not(.raw) { stroke-dasharray: 6 3; } .chart .d2:not(.raw) { stroke-dasharray: 2 3; }
.chart .d3:not(.raw) { stroke-dasharray: 8 3 2 3; }
.key { font-weight: 400; color: var(--quiet); overflow-wrap: anywhere; }
.key::before { content: ""; display: inline-block; width: 1.1rem; margin-right: .35rem; vertical-align: middle; border-top: 2.5px solid var(--curve, currentColor); }
.key.d1::before { border-top-style: dashed; } .key.d2::before, .key.d3::before { border-top-style: dotted; }
.chart output { position: absolute; z-index: 2; display: none; padding: .35rem .6rem; border: 1px solid var(--line); border-radius: 6px;
  background: var(--paper); box-shadow: 0 2px 8px #0003; font-size: .8rem; white-space: pre; pointer-events: none; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .87rem; }
th, td { padding: .25rem .9rem .25rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; font-weight: 400; }
th[scope=row] { color: var(--quiet); white-space: nowrap; } tr > th:not([scope]) { font-weight: 600; white-space: nowrap; }
td { overflow-wrap: anywhere; min-width: 4rem; } .samples td { white-space: pre-wrap; min-width: 6rem; }
.runs { display: flex; flex-wrap: wrap; gap: .2rem 1rem; max-width: none; margin-bottom: .8rem; }
.numbers tr > th:not([scope]) { white-space: normal; vertical-align: bottom; min-width: 5rem; }
.numbers td { min-width: 5rem; font-variant-numeric: tabular-nums; white-space: nowrap; }
details { margin: .5rem 0; } summary { cursor: pointer; font-weight: 600; } details > :not(summary) { margin-left: .2rem; }
.steps { display: flex; flex-wrap: wrap; gap: .35rem; align-items: center; margin-bottom: .6rem; color: var(--quiet); font-size: .87rem; }
.steps button { padding: .1rem .65rem; border: 1px solid var(--line); border-radius: 6px; background: var(--raised); color: var(--ink);
  font: inherit; font-variant-numeric: tabular-nums; cursor: pointer; }
.steps button[aria-pressed=true] { border-color: var(--note); background: var(--note); color: var(--paper); font-weight: 600; }
.steps button:focus-visible { outline: 2px solid var(--note); outline-offset: 2px; }
.tv > label { border-color: var(--line); background: var(--raised); font-size: .87rem; }
.tv > input:checked + label { border-color: var(--note); background: var(--note); color: var(--paper); }
.tv-end, .tv-own { color: var(--ink); }
.tv > label.tv-scale { margin-left: .6rem; border-style: dashed; }
.tv-token.flipped:hover::after { left: auto; right: 0; }
.tv-sequence { margin-top: 1rem; padding: .7rem .9rem; border: 1px solid var(--line); border-radius: 8px; }
.tv-sequence h3 { margin-top: 0; font-size: .93rem; } .tv-sequence p, .tv-legend { color: var(--quiet); }
@media print { .step[hidden] { display: block; } }
""" + "\n".join(f".c{number} {{ --curve: {colour}; }}" for number, colour in enumerate(COLOURS))

SCRIPT = """
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const short = value => String(Number(value.toPrecision(4)));

document.querySelectorAll(".chart").forEach((chart, number) => {
  const { x, left, right, curves } = data.charts[number];
  const drawings = [...chart.querySelectorAll("svg")], output = chart.querySelector("output");
  const steps = [...new Set(curves.flatMap(curve => curve.steps))].sort((a, b) => a - b);
  const nearest = (own, wanted) => own.reduce((best, s, i) => Math.abs(s - wanted) < Math.abs(own[best] - wanted) ? i : best, 0);
  let shown = null;
  const leave = () => {
    shown = null;
    output.style.display = "none";
    drawings.forEach(svg => svg.querySelector(".cursor").setAttribute("hidden", ""));
  };
  const show = (svg, step) => {
    shown = step;
    const at = left + (step - x[0]) / Math.max(x[1] - x[0], 1) * (right - left);
    const units = svg.viewBox.baseVal.width * at, cursor = svg.querySelector(".cursor"), box = svg.getBoundingClientRect();
    cursor.setAttribute("x1", units); cursor.setAttribute("x2", units); cursor.removeAttribute("hidden");
    const lines = curves.map(curve => {
      const best = nearest(curve.steps, step);
      return `${curve.label}  ${short(curve.values[best])}` + (curve.steps[best] === step ? "" : `  (step ${curve.steps[best]})`);
    });
    output.textContent = [`step ${step}`, ...lines].join("\\n");
    output.style.display = "block";
    const room = chart.clientWidth - output.offsetWidth;
    output.style.left = `${Math.max(Math.min(at * box.width + 12, room), 0)}px`;
    output.style.top = `${box.top - chart.getBoundingClientRect().top + 6}px`;
  };
  drawings.forEach(svg => {
    svg.addEventListener("pointerleave", leave);
    svg.addEventListener("blur", leave);
    svg.addEventListener("pointermove", event => {
      const box = svg.getBoundingClientRect();
      const share = ((event.clientX - box.left) / box.width - left) / (right - left);
      if (share < -0.02 || share > 1.02) { leave(); return; }
      show(svg, steps[nearest(steps, x[0] + share * (x[1] - x[0]))]);
    });
    svg.addEventListener("keydown", event => {
      const by = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -Infinity, End: Infinity }[event.key];
      if (event.key === "Escape") leave();
      if (by === undefined) return;
      event.preventDefault();
      const from = shown === null ? steps.length - 1 : steps.indexOf(shown);
      show(svg, steps[Math.max(0, Math.min(steps.length - 1, from + by))]);
    });
  });
  chart.querySelector("button.log")?.addEventListener("click", event => {
    leave();
    const pressed = event.currentTarget.getAttribute("aria-pressed") !== "true";
    event.currentTarget.setAttribute("aria-pressed", pressed);
    drawings.forEach(svg => svg.toggleAttribute("hidden", (svg.dataset.scale === "log") !== pressed));
  });
});

const flip = token => {  // in the right half of the window the numbers open to the left
  token.classList.toggle("flipped", token.getBoundingClientRect().left > window.innerWidth / 2);
};
document.addEventListener("pointerover", event => {
  const token = event.target.closest?.(".tv-token");
  if (token) flip(token);
});
document.querySelectorAll(".tv-text").forEach(text => {  // arrow keys go from token to token
  const tokens = [...text.querySelectorAll(".tv-token")];
  let current = -1;
  const choose = to => {
    tokens[current]?.classList.remove("tv-current");
    current = to;
    const token = tokens[to];
    if (!token) return;
    token.classList.add("tv-current");
    flip(token);
    token.scrollIntoView({ block: "nearest" });
    text.setAttribute("aria-label", token.dataset.tip);
  };
  text.tabIndex = 0;
  text.setAttribute("role", "group");
  text.setAttribute("aria-label", "tokens: arrow keys show the numbers of each");
  text.addEventListener("blur", () => choose(-1));
  text.addEventListener("keydown", event => {
    const by = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
    if (by === undefined) return;
    event.preventDefault();
    choose(Math.max(0, Math.min(tokens.length - 1, current + by)));
  });
});

document.querySelectorAll(".records").forEach(records => {
  const buttons = [...records.querySelectorAll(".steps button")], views = [...records.querySelectorAll(".step")];
  const choose = step => {
    views.forEach(view => { view.hidden = view.dataset.step !== step; });
    buttons.forEach(button => button.setAttribute("aria-pressed", button.dataset.step === step));
  };
  buttons.forEach(button => button.addEventListener("click", () => choose(button.dataset.step)));
  choose(buttons[buttons.length - 1].dataset.step);
  records.addEventListener("change", event => {  // the same column and scale at every step
    const own = [...event.target.closest(".tv").querySelectorAll("input")].indexOf(event.target);
    views.forEach(view => { view.querySelectorAll(".tv > input")[own].checked = event.target.checked; });
  });
});

let folded = [];
window.addEventListener("beforeprint", () => {  // paper has nothing to click
  folded = [...document.querySelectorAll("details:not([open])")];
  folded.forEach(one => { one.open = true; });
});
window.addEventListener("afterprint", () => folded.forEach(one => { one.open = false; }));
"""
