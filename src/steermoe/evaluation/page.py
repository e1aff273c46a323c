"""The frame of an HTML report: one file, nothing fetched (the page forbids it to itself), one script that sorts tables."""

from __future__ import annotations

import base64
import hashlib
from html import escape

# A click, or Enter, on a column's head sorts by it, a second one the other way round; groups of rows stay together.
SCRIPT = """
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  const value = (row, column) => {
    const text = row.cells[column] ? row.cells[column].textContent.trim() : "";
    const number = parseFloat(text.replace(/[,+]/g, ""));
    return Number.isNaN(number) ? text.toLowerCase() : number;
  };
  const before = (a, b) => typeof a === typeof b ? (a < b ? -1 : a > b ? 1 : 0) : typeof a === "number" ? -1 : 1;
  heads.forEach((head, column) => {
    const sort = () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      let group = [];
      const place = next => {
        group.sort((a, b) => (down ? -1 : 1) * before(value(a, column), value(b, column)));
        group.forEach(row => body.insertBefore(row, next));
        group = [];
      };
      for (const row of [...body.rows]) row.classList.contains("group") ? place(row) : group.push(row);
      place(null);
    };
    head.tabIndex = 0;
    head.addEventListener("click", sort);
    head.addEventListener("keydown", event => event.key === "Enter" && sort());
  });
}
"""
_DIGEST = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
POLICY = f"default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'; script-src 'sha256-{_DIGEST}'"

# The word colours are Okabe and Ito's, darkened or lightened for contrast; each kind has its own shape too.
STYLE = """
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --ink: #1d2127; --soft: #59636e; --line: #dde1e6; --accent: #0a5fa3;
  --sub: #974300; --sub-bg: #fff1e2; --del: #8b2463; --del-bg: #fbe8f3; --ins: #0a5fa3; --ins-bg: #e4f1fb;
  --good: #0b6e4f; --bad: #a33b00;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #111317; --card: #1b1e24; --ink: #e5e8ec; --soft: #a2abb6; --line: #343a43; --accent: #6cb8ee;
    --sub: #f2a766; --sub-bg: #3a2813; --del: #eb9fcd; --del-bg: #3a1e30; --ins: #7cc0f2; --ins-bg: #14304a;
    --good: #4cc79d; --bad: #f2a766;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink); overflow-wrap: anywhere;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
main, header { max-width: 70rem; margin: 0 auto; padding: 0 clamp(0.8rem, 3vw, 2rem); }
header { padding-top: clamp(1.2rem, 4vw, 2.6rem); }
main { padding-bottom: 3rem; }
h1 { font-size: clamp(1.5rem, 4.5vw, 2.1rem); line-height: 1.2; margin: 0 0 0.25rem; letter-spacing: -0.01em; }
h2 { font-size: 1.2rem; margin: 0 0 0.75rem; }
h3 { font-size: 1rem; margin: 0; }
p { margin: 0.4rem 0; }
.soft, figcaption { color: var(--soft); font-size: 0.9rem; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 12px; margin-top: 1.1rem;
  padding: clamp(0.9rem, 2.5vw, 1.5rem); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: 0.8rem; margin-top: 1.1rem; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 0.8rem 1rem; }
.tile b { display: block; font-size: 1.75rem; line-height: 1.2; font-weight: 650; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: 0.85rem; display: block; }
.tile:first-child { border-color: var(--accent); }
.scroll { overflow-x: auto; }
.scroll:focus-visible, summary:focus-visible, audio:focus-visible { outline: 2px solid var(--accent);
  outline-offset: 2px; }
table { border-collapse: separate; border-spacing: 0; width: 100%; font-variant-numeric: tabular-nums;
  font-size: 0.93rem; }
th, td { padding: 0.42rem 0.7rem; text-align: right; white-space: nowrap; }
tbody th, tbody td { border-top: 1px solid var(--line); }
thead th { color: var(--soft); font-weight: 600; font-size: 0.83rem; vertical-align: bottom; }
th:first-child { text-align: left; position: sticky; left: 0; background: var(--card); font-weight: 500;
  white-space: normal; min-width: 7.5rem; }
tr.own th, tr.own td { font-weight: 650; }
tr.group th { padding-top: 0.9rem; position: static; }
tr.group span { position: sticky; left: 0.7rem; display: inline-block; max-width: min(40rem, 72vw);
  color: var(--accent); font-weight: 650; }
thead th { cursor: pointer; } th[aria-sort=ascending]::after { content: " ↑"; }
th[aria-sort=descending]::after { content: " ↓"; }
.good { color: var(--good); } .bad { color: var(--bad); }
svg.range { display: block; margin-left: auto; width: 8.5rem; height: 0.9rem; color: var(--soft); }
tr.own svg.range { color: var(--accent); }
figure { margin: 0.4rem 0 1.2rem; } figure:last-child { margin-bottom: 0; }
img { max-width: 100%; height: auto; display: block; border-radius: 8px; }
.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); gap: 0 1.2rem; }
.curves figure { margin-bottom: 0.6rem; } .curves figcaption { display: none; }
.wide img { min-width: 38rem; }
.clips { list-style: none; margin: 1.2rem 0 0; padding: 0; }
.clips > li { border-top: 1px solid var(--line); padding: 1rem 0; }
.clips > li:first-child { border-top: 0; padding-top: 0.3rem; } .clips > li:last-child { padding-bottom: 0; }
.head { display: flex; flex-wrap: wrap; gap: 0.2rem 0.9rem; align-items: baseline; }
audio { width: 100%; max-width: 30rem; height: 2.4rem; margin: 0.5rem 0; display: block; }
.words { display: flex; flex-wrap: wrap; gap: 0.3rem 0.42rem; align-items: flex-start; margin: 0.5rem 0; }
.words span { display: inline-flex; flex-direction: column; border-radius: 5px; padding: 0.05rem 0.1rem; }
.words del, .words ins { text-decoration: none; }
.words .s { background: var(--sub-bg); color: var(--sub); padding: 0.05rem 0.4rem; }
.words .s del { font-size: 0.85em; border-bottom: 1px solid currentColor; } .words .s ins { font-weight: 650; }
.words .d { background: var(--del-bg); color: var(--del); padding: 0.05rem 0.4rem; }
.words .d del { text-decoration: line-through; }
.words .i { background: var(--ins-bg); color: var(--ins); padding: 0.05rem 0.4rem; font-weight: 650; }
.words .i ins::before { content: "+ "; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0.15rem 0.9rem; margin: 0.5rem 0 0;
  font-size: 0.93rem; }
dt { color: var(--soft); } dd { margin: 0; min-width: 0; }
summary { cursor: pointer; color: var(--accent); }
@media (max-width: 34rem) { dl { grid-template-columns: 1fr; } dd { margin-bottom: 0.35rem; } }
@media print { body { background: white; } section, .tile { break-inside: avoid; } audio { display: none; } }
"""


def page(title: str, header: str, body: str) -> str:
    """A whole document; ``title`` is plain text, ``header`` and ``body`` are HTML."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n<header>{header}</header>\n<main>\n{body}\n</main>\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def section(heading: str, body: str) -> str:
    return f"<section>\n<h2>{escape(heading)}</h2>\n{body}\n</section>"


def table(caption: str, head: list[str], rows: list[str]) -> str:
    """``caption`` is plain text, ``head`` and ``rows`` (whole ``<tr>``) are HTML. Scrolls where it is too wide."""
    cells = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    label = escape(caption, quote=True)
    return (
        f'<p class="soft">{label}</p><div class="scroll" role="region" aria-label="{label}" tabindex="0">'
        f'<table aria-label="{label}"><thead><tr>{cells}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    )


def row(name: str, cells: list[str], kind: str = "") -> str:
    """One ``<tr>``: ``name`` is plain text, ``cells`` are HTML."""
    mark = f' class="{kind}"' if kind else ""
    return f'<tr{mark}><th scope="row">{escape(name)}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
