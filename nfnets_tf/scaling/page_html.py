"""The markup of a report: one file that needs nothing but itself.

Whatever is text is escaped here; markup is what other functions of this module
or `page_svg` have made.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from numbers import Real

import pandas as pd

from nfnets_tf.scaling.page_svg import ramp

_POLICY = (
  "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline';"
  " img-src data:"
)
_STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #fff;
  --ink: #1c2128; --soft: #5b6470; --line: #dfe3e8; --tint: #eef4ff;
  --done: #2a8f5b; --running: #2f6fdb; --pending: #c3cad3; --failed: #c9372c;
  --bad: #fdf0ee; LIGHT }
@media (prefers-color-scheme: dark) { :root { --page: #14171b;
  --card: #1d2126; --ink: #e6e9ed; --soft: #9aa4b0; --line: #343a42;
  --tint: #22304a; --done: #43b47a; --running: #5b93f0; --pending: #4b535d;
  --failed: #ef6a5e; --bad: #33201f; DARK } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1.25rem 4rem; max-width: 80rem;
  background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.6rem; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.25rem 0 .75rem; }
h3 { font-size: .95rem; margin: 0 0 .25rem; }
p { margin: .4rem 0; max-width: 75ch; }
.soft { color: var(--soft); font-size: .9rem; }
.tiles, .figures { display: grid; gap: .9rem; }
.tiles { grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr));
  margin: 1.1rem 0; }
.tile, figure, .rows, details, .missing { background: var(--card);
  border: 1px solid var(--line); border-radius: 8px; }
.tile { padding: .6rem .9rem; }
.tile b { display: block; font-size: 1.3rem; font-weight: 600; }
.bar { display: flex; height: 14px; border-radius: 7px; overflow: hidden;
  background: var(--line); gap: 2px; }
.done { background: var(--done); } .failed { background: var(--failed); }
.running { background: var(--running); }
.pending { background: var(--pending); }
.key { display: flex; flex-wrap: wrap; gap: .1rem 1rem; font-size: .85rem;
  color: var(--soft); margin: .35rem 0; padding: 0; list-style: none; }
.key i { display: inline-block; width: .7em; height: .7em; border-radius: 50%;
  margin-right: .4em; }
.key em { font-style: normal; margin-right: .35em; }
.failure { background: var(--bad); border-left: 4px solid var(--failed);
  border-radius: 4px; padding: .6rem .9rem; margin: .6rem 0; }
.failure pre { white-space: pre-wrap; overflow-wrap: anywhere;
  margin: .25rem 0 0; }
.calm { background: none; border-left-color: var(--pending); }
.figures {
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); }
figure { margin: 0; padding: .8rem .9rem .6rem; min-width: 0; }
figure svg { display: block; width: 100%; height: auto; overflow: visible; }
figure svg * { stroke-linejoin: round; stroke-linecap: butt; }
.missing { padding: .6rem .9rem; border-style: dashed; color: var(--soft);
  max-width: none; }
.rows { overflow-x: auto; max-height: 32rem; }
table { border-collapse: collapse; width: 100%; font-size: .87rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; text-align: left; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
th { position: sticky; top: 0; background: var(--card); }
th button { all: unset; cursor: pointer; font-weight: 600; }
th button:focus-visible { outline: 2px solid var(--running); }
th[aria-sort=ascending] button::after { content: " ▲"; }
th[aria-sort=descending] button::after { content: " ▼"; }
td.number, th.number { text-align: right; }
tr.best td { background: var(--tint); } tr:last-child td { border-bottom: 0; }
details { padding: .6rem .9rem; } summary { cursor: pointer; }
details pre { overflow-x: auto; font-size: .8rem; }
"""
_SORTING = """
for (const head of document.querySelectorAll("th button")) {
  head.addEventListener("click", () => {
    const cell = head.parentNode, body = cell.closest("table").tBodies[0];
    const up = cell.getAttribute("aria-sort") !== "ascending";
    for (const other of cell.parentNode.children) {
      other.removeAttribute("aria-sort");
    }
    cell.setAttribute("aria-sort", up ? "ascending" : "descending");
    const value = row => row.children[cell.cellIndex].dataset.value;
    const order = (a, b) => value(a) === value(b) ? 0
      : value(a) === "" ? 1 : value(b) === "" ? -1
      : (up ? 1 : -1) * (cell.className === "number"
        ? value(a) - value(b) : value(a).localeCompare(value(b)));
    body.append(...[...body.rows].sort(order));
  });
}
"""


def document(
  title: str, sections: Iterable[str], *, refresh_seconds: int | None
) -> str:
  """Returns the page.

  Args:
    title: text.
    sections: markup.
    refresh_seconds: after which a browser loads the page again; None is never.
  """
  refresh = ""
  if refresh_seconds is not None:
    refresh = f'<meta http-equiv="refresh" content="{refresh_seconds:d}">\n'
  style = _STYLE.replace("LIGHT", _ramp(False)).replace("DARK", _ramp(True))
  body = "\n".join(section for section in sections if section)
  return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
{refresh}<title>{text(title)}</title>
<style>{style}</style>
</head>
<body>
{body}
<script>{_SORTING}</script>
</body>
</html>
"""


def text(value) -> str:
  """Returns text as markup that shows it as it is."""
  return html.escape(str(value))


def table(rows: pd.DataFrame, *, best: Sequence[bool] = ()) -> str:
  """Returns a table that its reader can sort, in a frame that it scrolls in.

  Args:
    rows: what is in it, under its columns' names; what is not known is empty.
    best: whether a row is to stand out, of each.
  """
  columns = [rows[name].tolist() for name in rows]
  kinds = [_kind(values) for values in columns]
  heads = "".join(
    f'<th class="{kind}"><button>{text(name)}</button></th>'
    for name, kind in zip(rows, kinds)
  )
  lines = []
  for place, values in enumerate(zip(*columns)):
    marked = ' class="best"' if place < len(best) and best[place] else ""
    cells = "".join(_cell(value, kind) for value, kind in zip(values, kinds))
    lines.append(f"<tr{marked}>{cells}</tr>")
  body = "\n".join(lines)
  return (
    f'<div class="rows" tabindex="0"><table><thead><tr>{heads}</tr></thead>\n'
    f"<tbody>{body}</tbody></table></div>"
  )


def number(value: float) -> str:
  """Returns a number as it is read in a table: 4 digits, whole ones in full."""
  if float(value).is_integer() and abs(value) < 1e12:
    return f"{int(value):,}"
  return f"{value:.4g}"


def duration(seconds: float) -> str:
  """Returns a time as 3 d 4 h, 5 h 12 min, 7 min 30 s or 12 s."""
  whole = round(seconds)
  for size, unit, part, smaller in (
    (86400, "d", 3600, "h"),
    (3600, "h", 60, "min"),
    (60, "min", 1, "s"),
  ):
    if whole >= size:
      return f"{whole // size} {unit} {whole % size // part} {smaller}"
  return f"{whole} s"


def _ramp(dark: bool) -> str:
  return " ".join(f"--ramp{i}: {c};" for i, c in enumerate(ramp(dark=dark)))


def _missing(value) -> bool:
  return value is None or (isinstance(value, float) and math.isnan(value))


def _kind(values) -> str:
  known = [value for value in values if not _missing(value)]
  numbers = [isinstance(v, Real) and not isinstance(v, bool) for v in known]
  return "number" if known and all(numbers) else "words"


def _cell(value, kind) -> str:
  if _missing(value):
    return f'<td class="{kind}" data-value=""></td>'
  shown = number(value) if kind == "number" else value
  return f'<td class="{kind}" data-value="{text(value)}">{text(shown)}</td>'
