"""The sections of a sweep's report."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import pandas as pd

from nfnets_tf.scaling import page_figures, page_html
from nfnets_tf.scaling.overview import Overview
from nfnets_tf.scaling.page_curves import Picture
from nfnets_tf.scaling.page_html import text
from nfnets_tf.scaling.page_laws import Laws, lacking, tell_laws
from nfnets_tf.scaling.page_svg import on_page
from nfnets_tf.scaling.sweep_store import DONE, FAILED, PENDING

LOGGER = logging.getLogger("nfnets_tf")


def section(title: str, make: Callable[..., str], *given) -> str:
  """Returns a section, empty if there is nothing to say."""
  try:
    content = make(*given)
  except Exception as error:  # what else there is can still be read
    LOGGER.warning("%s: not in the report: %r", title, error)
    content = _missing(f"This could not be made: {error!r}.")
  return f"<section><h2>{title}</h2>\n{content}</section>" if content else ""


def _missing(words: str) -> str:
  return f'<p class="missing">{text(words)}</p>'


def head(name: str, view: Overview, refresh_seconds: int | None) -> str:
  """Returns the title, the numbers and the states."""
  now = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())
  refresh = ""
  if refresh_seconds is not None:
    refresh = f"; loads itself again every {refresh_seconds} s"
  counts, seconds = view.counts(), view.trials["seconds"].sum()
  total = sum(counts.values())
  known = "known so far" if view.tuned and counts[PENDING] else "points done"
  tiles = [(f"{counts[DONE]} of {total}", known)]
  tiles.append((page_html.duration(seconds), "in all runs together"))
  spent = view.trials.loc[view.trials["state"] == DONE, "compute"].sum()
  if spent:
    tiles.append((f"{spent:.3g}", "training FLOPs done"))
  if len(view.best):
    best = view.best.loc[view.best["loss"].astype(float).idxmin()]
    tiles.append((f"{best['loss']:.4f}", f"lowest {view.loss}: {best['cell']}"))
  shown = "".join(
    f'<div class="tile"><b>{text(value)}</b>'
    f'<span class="soft">{text(words)}</span></div>'
    for value, words in tiles
  )
  return (
    f'<h1>{text(name)}</h1>\n<p class="soft">A sweep; written {now}'
    f' UTC{refresh}.</p>\n<div class="tiles">{shown}</div>\n{_bar(counts)}'
  )


def _bar(counts: dict[str, int]) -> str:
  told = ", ".join(f"{count} {state}" for state, count in counts.items())
  parts = "".join(
    f'<span class="{state}" style="flex:{count}"></span>'
    for state, count in counts.items()
    if count
  )
  key = "".join(
    f'<li><i class="{state}"></i>{count} {state}</li>'
    for state, count in counts.items()
  )
  return (
    f'<div class="bar" role="img" aria-label="{told}">{parts}</div>'
    f'<ul class="key">{key}</ul>'
  )


def failures(view: Overview) -> str:
  """Returns all failures in full, nothing if there are none."""
  failed = view.trials[view.trials["state"] == FAILED]
  if not len(failed):
    return ""
  diverged = failed["diverged"].astype(bool)
  parts = [_failure(row, "failure") for row in failed[~diverged].itertuples()]
  if parts:
    parts.append('<p class="soft">--points=failed does them again.</p>')
  if diverged.any():
    parts.append(
      "<h3>Diverged</h3>\n<p>What is tuned was too high there; counted as"
      " tried, with an infinite loss.</p>"
    )
  parts += [
    _failure(row, "failure calm") for row in failed[diverged].itertuples()
  ]
  return "\n".join(parts)


def _failure(row, kind: str) -> str:
  reason = row.reason or "no reason is known"
  return (
    f'<div class="{kind}"><b>{text(row.point)}</b>'
    f"<pre>{text(reason)}</pre></div>"
  )


def figures(view: Overview, found: Laws) -> str:
  """Returns the figures."""
  pictures = page_figures.draw_all(view, found)
  figures = [_figure(p, f"figure{i}") for i, p in enumerate(pictures, 1)]
  return f'<div class="figures">{"".join(figures)}</div>'


def _figure(picture: Picture, name: str) -> str:
  legend = "".join(
    f'<li><em style="color:{on_page(shade)}">{glyph}</em>{text(words)}</li>'
    for glyph, shade, words in picture.legend
  )
  parts = [f"<figcaption><h3>{text(picture.title)}</h3></figcaption>"]
  if legend:
    parts.append(f'<ul class="key">{legend}</ul>')
  if picture.drawing:
    parts.append(picture.drawing.svg(name))
  if picture.note:
    kind = "soft" if picture.drawing else "missing"
    parts.append(f'<p class="{kind}">{text(picture.note)}</p>')
  return f"<figure>{''.join(parts)}</figure>\n"


def fitted_laws(found: Laws) -> str:
  """Returns the coefficients, and what cannot be fitted yet."""
  told, missing = tell_laws(found), lacking(found)
  parts = [page_html.table(told)] if len(told) else []
  return "\n".join([*parts, *map(_missing, missing)])


def best_of_cells(view: Overview) -> str:
  """Returns the table of the cells."""
  cells = view.cells
  shown = pd.DataFrame({"cell": cells["cell"], "trials done": cells["trials"]})
  if view.tuned:
    shown[f"best {view.tuned}"] = cells["value"]
    edge = cells["edge"].map({True: "at the edge of those tried", False: ""})
    shown["the best is"] = edge
  shown[view.loss] = cells["loss"]
  shown["FLOPs of a trial"] = cells["compute"]
  shown["more to come"] = cells["open"].map({True: "yes", False: "no"})
  return page_html.table(shown)


def all_points(view: Overview, results: pd.DataFrame) -> str:
  """Returns the table of all points."""
  if not len(results):
    return _missing("No point is known.")
  hidden = {"cell", "reason", "images", "steps", "macs", "parameters"}
  shown = results[[name for name in results if name not in hidden]]
  best = shown["point"].isin(view.best["point"])
  note = '<p class="soft">Marked: the best trial of each cell.</p>'
  return page_html.table(shown, best=best.tolist()) + note


def plan(rows: pd.DataFrame | None) -> str:
  """Returns the table of what points cost."""
  if rows is None:
    return _missing("There is no plan.csv yet; --points=plan writes it.")
  return page_html.table(rows)


def configuration(listing: str) -> str:
  """Returns the section that shows all bindings."""
  return (
    "<section><h2>Configuration</h2><details><summary>config.gin</summary>"
    f"<pre>{text(listing)}</pre></details></section>"
  )
