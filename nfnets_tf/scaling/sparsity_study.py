"""A study of sparsity: the runs of a table, and the laws fitted to them."""

from __future__ import annotations

import dataclasses
import functools
import logging

import numpy as np
import pandas as pd

from nfnets_tf.errors import UserError
from nfnets_tf.scaling import power_laws
from nfnets_tf.scaling.outliers import split_law_outliers
from nfnets_tf.scaling.run_tables import (
  DENSE,
  SparsityColumns,
  read_sparse_runs,
)
from nfnets_tf.scaling.sparsity_fit import (
  MIN_LEVELS,
  MIN_POINTS,
  FitOptions,
  bootstrap_sparsity_law,
  coefficients_at_range_ends,
  fit_sparsity_law,
  fit_structure,
  log_loss_slopes,
)
from nfnets_tf.scaling.sparsity_law import (
  LEVEL,
  SparsityLaw,
  TrainingCost,
  central_interval,
)

LOGGER = logging.getLogger("nfnets_tf")

_VARIABLES = ["sparsity", "nonzero", "data"]
_GRID = 13  # values of size and of compute in the table of optima
_MIN_CONDITION = 1e-5  # a coefficient's noise is up to its inverse times theirs
_FEW = 4  # rows; with fewer their noise is unknown


@dataclasses.dataclass(frozen=True)
class HeldBack:
  """The most expensive points, predicted from all others.

  Attributes:
    points: rows of the fits' points, with the columns predicted, low and high
      (the interval of the prediction, NaN without samples).
    law: fitted to the others; None if they do not determine it.
  """

  points: pd.DataFrame
  law: SparsityLaw | None

  def errors(self) -> np.ndarray:
    """Returns predicted / measured - 1 [n]."""
    return (self.points["predicted"] / self.points["loss"] - 1.0).to_numpy()

  def describe(self) -> str:
    """Returns the prediction of the most expensive point, in words."""
    if self.law is None:
      return "not enough other points"
    point, error = self.points.iloc[-1], self.errors()[-1]
    text = f"{point['predicted']:.4g} for {point['loss']:.4g} ({error:+.2%})"
    if len(self.points) > 1:
      worst = np.abs(self.errors()).max()
      text += f"; errors of {len(self.points)} points up to {worst:.2%}"
    return text


@dataclasses.dataclass(frozen=True)
class SparsityFits:
  """Everything fitted to a study of sparsity.

  Attributes:
    points: columns structure, sparsity, level, nonzero, data, loss and name.
    skipped_rows: {reason: number of the table's rows that are not used}.
    outliers: points that contradict all others of their law, with the column
      predicted; they are not among the points.
    main: the structure of the law.
    law: of the main structure and of dense networks.
    structures: {other structure: its law}.
    held_back: see `HeldBack`; None if none is.
    cost: of training.
  """

  points: pd.DataFrame
  skipped_rows: dict[str, int]
  outliers: pd.DataFrame
  main: str
  law: SparsityLaw
  structures: dict[str, SparsityLaw]
  held_back: HeldBack | None
  cost: TrainingCost

  @property
  def laws(self) -> dict[str, SparsityLaw]:
    """{structure: its law}, the main one first."""
    return {self.main: self.law, **self.structures}

  def of_structure(self, structure: str) -> pd.DataFrame:
    """Returns the points of a structure and of dense networks."""
    return _of_structure(self.points, structure)

  def optima(self) -> pd.DataFrame:
    """Returns the optimal sparsity over the table's range.

    Returns:
      Columns nonzero, compute, sparsity, data, loss and dense_equivalent (the
      size of an equally good dense network), for each of 13 log-spaced numbers
      of nonzero parameters and computes.
    """
    computes = self.cost.compute(*self.points[_VARIABLES].to_numpy().T)
    ranges = (self.points["nonzero"], computes)
    axes = (np.geomspace(x.min(), x.max(), _GRID) for x in ranges)
    nonzero, compute = (x.ravel() for x in np.meshgrid(*axes, indexing="ij"))
    sparsity = self.law.optimal_sparsity(nonzero, compute, self.cost)
    data = self.cost.data(sparsity, nonzero, compute)
    return pd.DataFrame(
      {
        "nonzero": nonzero,
        "compute": compute,
        "sparsity": sparsity,
        "data": data,
        "loss": self.law.predict(sparsity, nonzero, data),
        "dense_equivalent": nonzero * self.law.dense_equivalent(sparsity),
      }
    )

  def dense_equivalents(self) -> dict[str, dict[float, dict]]:
    """Returns {structure: {level: value and interval}} of a table."""
    result = {}
    for structure, law in self.laws.items():
      levels = np.unique(self.of_structure(structure)["level"])
      result[structure] = {
        sparsity: _estimate(law, lambda x, s=sparsity: x.dense_equivalent(s))
        for sparsity in levels[levels > 0].tolist()
      }
    return result

  def warnings(self) -> list[str]:
    """Returns a sentence for everything that makes the law doubtful."""
    sentences = [
      f"{point.name} is an outlier, left out: its loss is {point.loss:.4g},"
      f" but the other points give {point.predicted:.4g}"
      f" ({point.loss / point.predicted - 1:+.0%}); correct or drop the row."
      for point in self.outliers.itertuples()
    ]
    sentences += [
      f"The law ({name}) misses its own {law.points} points by"
      f" {np.expm1(law.rms):.0%} (rms); do not use it before the table is"
      " corrected."
      for name, law in self.laws.items()
      if law.rms > power_laws.POOR_FIT
    ]
    for name, law in self.laws.items():
      ends = coefficients_at_range_ends(law, self.of_structure(name))
      if name != self.main:
        ends = [x for x in ends if getattr(law, x) != getattr(self.law, x)]
      if ends:
        sentences.append(
          f"The table does not determine {' and '.join(ends)} of the law"
          f" ({name}), at a limit of the fit; expected more sparsities, sizes"
          " or amounts of data, over a wider range."
        )
      count = (self.points["structure"] == name).sum()
      if name != self.main and count < _FEW:
        sentences.append(
          f"The law ({name}) has only {count} of its own rows, so that its"
          f" intervals are too narrow; expected at least {_FEW}."
        )
    return sentences

  def to_json(self) -> dict:
    """Returns every fitted coefficient with its interval."""
    held = self.held_back
    return {
      "points": len(self.points),
      "skipped_rows": self.skipped_rows,
      "outliers": self.outliers.drop(columns="level").to_dict("records"),
      "warnings": self.warnings(),
      "laws": {name: law.to_json() for name, law in self.laws.items()},
      "training_cost": dataclasses.asdict(self.cost),
      "dense_equivalent": self.dense_equivalents(),
      "held_back": held
      and {
        "law": held.law and held.law.to_json(),
        "points": held.points.drop(columns="level").to_dict("records"),
      },
    }

  def describe(self) -> list[tuple[str, str]]:
    """Returns (name, text) of the main results."""
    lines = [("points", f"{len(self.points)}")]
    lines += [
      ("skipped rows", f"{count}, {reason}")
      for reason, count in self.skipped_rows.items()
    ]
    if len(self.outliers):
      names = ", ".join(self.outliers["name"])
      lines.append(("outliers", f"{len(self.outliers)}, left out: {names}"))
    for name, law in self.laws.items():
      text = f"{law.describe()}; rms {law.rms:.2%}"
      lines.append((f"law ({name})", text))
    for structure, values in self.dense_equivalents().items():
      text = ", ".join(
        f"{sparsity:.4g}: {_describe(estimate)}"
        for sparsity, estimate in values.items()
      )
      lines.append((f"equal dense size ({structure})", text))
    if self.held_back:
      lines.append(("most expensive point", self.held_back.describe()))
    if self.law.bootstrap_samples:
      lines.append(("intervals", f"central {LEVEL:.0%} of the resamples"))
    return lines


def _estimate(law: SparsityLaw, quantity) -> dict:
  """Returns the value and the interval of a function of a law, for JSON."""
  samples = [float(quantity(sample)) for sample in law.samples()]
  interval = central_interval(samples) if samples else None
  return {"value": float(quantity(law)), "interval": interval}


def _describe(estimate: dict) -> str:
  text = f"{estimate['value']:.3g} N"
  if estimate["interval"] is not None:
    text += " ({:.3g} to {:.3g})".format(*estimate["interval"])
  return text


def fit_sparsity_study(
  table: pd.DataFrame,
  columns: SparsityColumns,
  *,
  options: FitOptions,
  cost: TrainingCost,
  hold_back: int,
) -> SparsityFits:
  """Fits the law to a table, and logs what makes it doubtful.

  Args:
    table: see `read_sparse_runs`.
    columns: names of its columns.
    options: of the fits.
    cost: of training, for optima and to rank the points.
    hold_back: number of the most expensive points that are also predicted from
      all others.

  Raises:
    UserError: if a column does not exist, a value is impossible or the table
      does not determine the law.
  """
  runs, skipped_rows = read_sparse_runs(table, columns)
  sparse = runs.loc[runs["structure"] != DENSE, "structure"]
  main = sparse.value_counts().idxmax() if len(sparse) else DENSE
  _require_determined(_of_structure(runs, main))
  law, points, odd = _fit_without_outliers(runs, main, options)
  own = _of_structure(points, main)
  law = bootstrap_sparsity_law(law, own, options)
  fits = SparsityFits(
    points=points,
    skipped_rows=skipped_rows,
    outliers=odd,
    main=main,
    law=law,
    structures={
      name: fit_structure(law, _of_structure(points, name), options)
      for name in _other_structures(points, main)
    },
    held_back=_predict_most_expensive(own, options, cost, hold_back),
    cost=cost,
  )
  for sentence in fits.warnings():
    LOGGER.warning("%s", sentence)
  return fits


def _of_structure(points: pd.DataFrame, structure: str) -> pd.DataFrame:
  return points[points["structure"].isin([structure, DENSE])]


def _other_structures(points: pd.DataFrame, main: str) -> list[str]:
  return [x for x in points["structure"].unique() if x not in (main, DENSE)]


def _require_determined(points: pd.DataFrame) -> None:
  """Raises a UserError if the points do not determine the law."""
  levels = {
    "sparsities": points["level"].nunique(),
    "numbers of nonzero parameters": points["nonzero"].nunique(),
    "amounts of data": points["data"].nunique(),
  }
  found = ", ".join(f"{count} {name}" for name, count in levels.items())
  if len(points) < MIN_POINTS or min(levels.values()) < MIN_LEVELS:
    raise UserError(
      f"the table does not determine the law: it has {len(points)} usable rows"
      f" of one structure, with {found}; expected at least {MIN_POINTS} rows"
      f" and {MIN_LEVELS} of each."
    )
  if _condition(points) < _MIN_CONDITION:
    raise UserError(
      "the table does not determine the law: sparsity, nonzero parameters and"
      f" data of its {len(points)} usable rows do not vary independently;"
      " expected several sizes at a sparsity and several amounts of data at a"
      " size."
    )


def _condition(points: pd.DataFrame) -> float:
  """Returns how well the points can tell the coefficients apart.

  Returns:
    The lowest over the highest singular value of the derivatives of a law by
    its variables, each of length 1. The law is a typical one, because at the
    best one of a hopeless table terms vanish.
  """
  nonzero, data, loss = np.exp(
    np.log(points[["nonzero", "data", "loss"]].to_numpy(float)).mean(axis=0)
  )
  term = loss / 4.0
  factor = term * nonzero**0.4
  a_d = data * term ** (1.0 / 0.6)
  law = SparsityLaw(factor, 0.8, factor, 0.4, a_d, 0.6, term)
  slopes = log_loss_slopes(law, points)
  lengths = np.linalg.norm(slopes, axis=0).clip(np.finfo(float).tiny)
  singular = np.linalg.svd(slopes / lengths, compute_uv=False)
  return singular[-1] / singular[0]


def _is_determined(points: pd.DataFrame) -> bool:
  try:
    _require_determined(points)
  except UserError:
    return False
  return True


def _fit_without_outliers(
  runs: pd.DataFrame, main: str, options: FitOptions
) -> tuple[SparsityLaw, pd.DataFrame, pd.DataFrame]:
  """Returns the law of the runs that agree, these runs, and the outliers.

  Rows of other structures are judged by their own laws, after the dense ones.
  """
  law, odd = split_law_outliers(
    _of_structure(runs, main),
    lambda points: fit_sparsity_law(points, options),
    log_loss_slopes,
    _is_determined,
  )
  found = [odd]
  for name in _other_structures(runs, main):
    runs = runs.drop(index=found[-1].index)
    _, odd = split_law_outliers(
      _of_structure(runs, name),
      lambda points: fit_structure(law, points, options),
      functools.partial(log_loss_slopes, structure=True),
      lambda points, name=name: (points["structure"] == name).any(),
    )
    found.append(odd[odd["structure"] == name])
  runs = runs.drop(index=found[-1].index)
  return law, runs, pd.concat(found)


def _predict(law: SparsityLaw, points: pd.DataFrame) -> np.ndarray:
  return law.predict(*points[_VARIABLES].to_numpy(float).T)


def _predict_most_expensive(points, options, cost, count) -> HeldBack | None:
  """Predicts the `count` points of the highest compute from all others."""
  if not count:
    return None
  compute = cost.compute(*points[_VARIABLES].to_numpy(float).T)
  order = np.argsort(compute, kind="stable")
  rest, held = points.iloc[order[:-count]], points.iloc[order[-count:]]
  unknown = held.assign(predicted=np.nan, low=np.nan, high=np.nan)
  if not _is_determined(rest):
    return HeldBack(unknown, None)
  law = fit_sparsity_law(rest, options)
  law = bootstrap_sparsity_law(law, rest, options)
  held = unknown.assign(predicted=_predict(law, held))
  if law.bootstrap_samples:
    where = held[_VARIABLES].to_numpy(float).T
    samples = np.array([sample.predict(*where) for sample in law.samples()])
    ranges = [central_interval(column) for column in samples.T]
    held["low"], held["high"] = np.array(ranges).T
  return HeldBack(held, law)
