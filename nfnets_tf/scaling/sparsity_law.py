"""The law of loss against sparsity, nonzero parameters and data.

  L(S, N, D) = (a_S (1 - S)^b_S + c_S) (1 / N)^b_N + (a_D / D)^b_D + c

of "Scaling Laws for Sparsely-Connected Foundation Models" (arXiv 2309.08520),
where S is the sparsity at the end of training, N the number of nonzero
parameters, D the amount of training data in any unit, and c the irreducible
loss. At the same N a sparse network is better than a dense one, because it was
chosen from more parameters; but it takes more compute to train. At a given N
and compute there is therefore an optimal sparsity.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from nfnets_tf.ranges import accepts, number

COEFFICIENTS = ("a_S", "b_S", "c_S", "b_N", "a_D", "b_D", "c")
LEVEL = 0.9  # of all intervals
MAX_DENSE = 0.01  # sparsity up to which a network counts as dense
_BISECTIONS = 60
_LOWEST_LOG_DENSITY = -30.0  # 1 minus this density is below 1 in float64
_MAX_LEVELS = 12
_LEVEL_WIDTHS = (0.02, 0.1, 0.3)  # of log density


@accepts(flops=number(above=0), mean_sparsity=number(0, below=1))
@dataclasses.dataclass(frozen=True)
class TrainingCost:
  """Training compute of a network that is pruned while it trains.

  It is `flops` N D / (1 - S) (1 - `mean_sparsity` S): that of the dense network
  times its mean density over training.

  Attributes:
    flops: for each parameter and unit of data; 6 if the data are tokens.
    mean_sparsity: over training, as a fraction of the last one. It is 0.625
      for the cubic schedule from 25 to 75 % of training, in general 0.75 (end -
      begin) + (1 - end); 0 counts the whole training as dense.
  """

  flops: float
  mean_sparsity: float

  def factor(self, sparsity) -> np.ndarray:
    """Returns compute over that of N parameters that are never pruned."""
    density = 1.0 - np.asarray(sparsity, float)
    return self.mean_sparsity + (1.0 - self.mean_sparsity) / density

  def compute(self, sparsity, nonzero, data) -> np.ndarray:
    """Returns the FLOPs [n] of runs; see `SparsityLaw.predict`."""
    product = np.asarray(nonzero, float) * np.asarray(data, float)
    return self.flops * self.factor(sparsity) * product

  def data(self, sparsity, nonzero, compute) -> np.ndarray:
    """Returns the data [n] that are affordable at FLOPs [n]."""
    step = self.flops * self.factor(sparsity) * np.asarray(nonzero, float)
    return np.asarray(compute, float) / step


@dataclasses.dataclass(frozen=True)
class SparsityLaw:
  """A law of the form in this module's docstring.

  Attributes:
    a_S: part of the sparse factor that pruning lowers.
    b_S: exponent of the density.
    c_S: part of the sparse factor that no sparsity lowers.
    b_N: exponent of the nonzero parameters.
    a_D: data, in the table's unit, at which their term is 1.
    b_D: exponent of the data.
    c: irreducible loss.
    points: number of fitted points.
    rms: root mean squared residual of log loss.
    objective: mean Huber loss.
    bootstrap_samples: the coefficients of each resample, in this order.
  """

  a_S: float
  b_S: float
  c_S: float
  b_N: float
  a_D: float
  b_D: float
  c: float
  points: int = 0
  rms: float = float("nan")
  objective: float = float("nan")
  bootstrap_samples: tuple[tuple[float, ...], ...] = ()

  @property
  def coefficients(self) -> tuple[float, ...]:
    """The values of `COEFFICIENTS`."""
    return tuple(getattr(self, name) for name in COEFFICIENTS)

  def samples(self) -> list[SparsityLaw]:
    """Returns the law of each bootstrap resample."""
    return [SparsityLaw(*sample) for sample in self.bootstrap_samples]

  def predict(self, sparsity, nonzero, data) -> np.ndarray:
    """Returns the losses [n].

    Args:
      sparsity: [n], at least 0 and below 1.
      nonzero: parameters that are not zero [n].
      data: [n], in the table's unit.
    """
    of_size = self.sparse_factor(sparsity) * np.asarray(nonzero, float) ** (
      -self.b_N
    )
    of_data = (self.a_D / np.asarray(data, float)) ** self.b_D
    return of_size + of_data + self.c

  def sparse_factor(self, sparsity) -> np.ndarray:
    """Returns a_S (1 - S)^b_S + c_S, the factor of (1 / N)^b_N [n]."""
    return self.a_S * (1.0 - np.asarray(sparsity, float)) ** self.b_S + self.c_S

  def dense_equivalent(self, sparsity) -> np.ndarray:
    """Returns the size of an equally good dense network, in units of N [n].

    The dense network sees the same data. NaN where no size matters.

    Args:
      sparsity: [n], at least 0 and below 1.
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
      ratio = self.sparse_factor(0.0) / self.sparse_factor(sparsity)
      return ratio ** (1.0 / self.b_N)

  def optimal_sparsity(
    self, nonzero, compute, cost: TrainingCost
  ) -> np.ndarray:
    """Returns the sparsity of the lowest loss at given N and compute [n].

    Where all of training counts as dense the optimum has a closed form,

      (1 - S)^(b_S + b_D) = b_D (a_D flops N / C)^b_D N^b_N / (a_S b_S);

    otherwise the root of the derivative is bracketed. It is 0 where more
    sparsity would take too much of the data, and just below 1 where no data
    are needed.

    Args:
      nonzero: parameters that are not zero [n].
      compute: of training, in FLOPs [n].
      cost: of training.
    """
    nonzero, compute = np.broadcast_arrays(
      np.asarray(nonzero, float), np.asarray(compute, float)
    )
    if self.a_S * self.b_S <= 0:
      return np.zeros(nonzero.shape)
    right = self._log_data_side(nonzero, compute, cost)
    if cost.mean_sparsity == 0:
      log_density = right / (self.b_S + self.b_D)
    else:
      log_density = self._bisect(right, cost)
    return 0.0 - np.expm1(np.clip(log_density, _LOWEST_LOG_DENSITY, 0.0))

  def _log_data_side(self, nonzero, compute, cost):
    """Returns the log of b_D (1 - m) (a_D flops N / C)^b_D N^b_N / (a_S b_S).

    m is the cost's `mean_sparsity`. The sparsity is optimal where this equals
    (1 - S)^(b_S + b_D) (1 - m S)^(1 - b_D), which rises with the density.
    """
    share = self.b_D * (1.0 - cost.mean_sparsity) / (self.a_S * self.b_S)
    with np.errstate(divide="ignore"):  # a_D may be 0
      of_data = np.log(cost.flops * nonzero / compute) + np.log(self.a_D)
    return np.log(share) + self.b_D * of_data + self.b_N * np.log(nonzero)

  def _log_density_side(self, log_density, cost):
    density = np.exp(log_density)
    trained = 1.0 - cost.mean_sparsity * (1.0 - density)
    return (self.b_S + self.b_D) * log_density + (1.0 - self.b_D) * np.log(
      trained
    )

  def _bisect(self, right, cost):
    """Returns the log density, at most 0, at which the two sides agree."""
    low = np.full(right.shape, _LOWEST_LOG_DENSITY)
    high = np.zeros(right.shape)
    for _ in range(_BISECTIONS):
      middle = (low + high) / 2.0
      above = self._log_density_side(middle, cost) > right
      low, high = np.where(above, low, middle), np.where(above, middle, high)
    return high

  def optimal_compute(
    self, sparsity, nonzero, cost: TrainingCost
  ) -> np.ndarray:
    """Returns the FLOPs at which a sparsity is optimal: its contour [n].

    Less compute favors a lower sparsity, more compute a higher one.

    Args:
      sparsity: [n], at least 0 and below 1. For 0 it is the compute below which
        any pruning hurts.
      nonzero: parameters that are not zero [n].
      cost: of training.
    """
    nonzero = np.asarray(nonzero, float)
    if self.a_S * self.b_S <= 0:
      return np.full(np.broadcast(sparsity, nonzero).shape, np.inf)
    log_density = np.log1p(-np.asarray(sparsity, float))
    at_one_flop = self._log_data_side(nonzero, 1.0, cost)
    left = self._log_density_side(log_density, cost)
    with np.errstate(over="ignore"):
      return np.exp((at_one_flop - left) / self.b_D)

  def dense_compute(self, parameters, cost: TrainingCost) -> np.ndarray:
    """Returns the FLOPs at which dense sizes [n] are compute-optimal [n]."""
    parameters = np.asarray(parameters, float)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
      ratio = self.b_D / (self.b_N * self.sparse_factor(0.0))
      exponent = np.log(ratio) + self.b_N * np.log(parameters)
      scale = np.log(self.a_D) + np.log(cost.flops * parameters)
      return np.exp(exponent / self.b_D + scale)

  def interval(self, name: str) -> tuple[float, float] | None:
    """Returns the central 90 % of a coefficient; None without samples."""
    if not self.bootstrap_samples:
      return None
    samples = np.array(self.bootstrap_samples)
    return central_interval(samples[:, COEFFICIENTS.index(name)])

  def describe(self) -> str:
    """Returns the coefficients and their intervals."""
    parts = []
    for name in COEFFICIENTS:
      parts.append(f"{name} {getattr(self, name):.4g}")
      if self.bootstrap_samples:
        parts[-1] += " ({:.3g} to {:.3g})".format(*self.interval(name))
    return ", ".join(parts)

  def to_json(self) -> dict:
    """Returns coefficients, intervals and the quality of the fit."""
    return {
      "form": "L = (a_S (1-S)^b_S + c_S) (1/N)^b_N + (a_D/D)^b_D + c",
      **{
        name: {"value": getattr(self, name), "interval": self.interval(name)}
        for name in COEFFICIENTS
      },
      "points": self.points,
      "rms_log_residual": self.rms,
      "mean_huber_loss": self.objective,
      "resamples": len(self.bootstrap_samples),
      "level": LEVEL,
    }


def sparsity_levels(sparsity: Sequence[float]) -> np.ndarray:
  """Returns the level that each run's sparsity [n] belongs to [n].

  Measured sparsities scatter around those that were asked for, and some designs
  draw every sparsity anew; levels are what a legend can list.

  Args:
    sparsity: [n], at least 0 and below 1.

  Returns:
    0 for dense networks, else the middle one of all sparsities within 2 % in
    density, or within more if there were more than 12 levels.
  """
  sparsity = np.asarray(sparsity, float)
  sparsity = np.where(sparsity <= MAX_DENSE, 0.0, sparsity)
  depth = -np.log1p(-sparsity)
  for width in _LEVEL_WIDTHS:
    starts = []
    for value in np.unique(depth[depth > 0.0]):
      if not starts or value > starts[-1] + width:
        starts.append(value)
    if len(starts) <= _MAX_LEVELS:
      break
  group = np.searchsorted(starts, depth, side="right")
  levels = sparsity.copy()
  for i in np.unique(group):
    same = np.sort(sparsity[group == i])
    levels[group == i] = same[len(same) // 2]
  return levels


def central_interval(samples: Sequence[float]) -> tuple[float, float]:
  """Returns the percentiles that enclose 90 % of the samples [n]."""
  outside = 50.0 * (1.0 - LEVEL)
  return tuple(np.percentile(samples, (outside, 100.0 - outside)).tolist())
