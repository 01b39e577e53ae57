"""Fits of the sparsity law: Huber loss, many starts, bootstrap.

All starts, and all resamples of a bootstrap, descend together as one array.
Losses, nonzero parameters and data are scaled by their geometric means, where
the law is a sum of four terms,

  L = A_1 (1 - S)^b_S N^-b_N + A_2 N^-b_N + A_3 D^-b_D + A_4,

linear in the amplitudes A >= 0, with exact first and second derivatives. That
matters: the Huber loss of a table is flat near its minimum, and a quasi-Newton
method with the usual tolerance on the gradient stops far from it.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd

from nfnets_tf.ranges import COUNT, SEED, accepts, flag, integer, number
from nfnets_tf.scaling.sparsity_law import SparsityLaw, sparsity_levels

MIN_LEVELS = 3  # of sparsity, size and data each
MIN_POINTS = 8  # one more than coefficients
_MIN_EXPONENT, _MAX_EXPONENT = 0.01, 5.0
# Of A_1 to A_4, b_S, b_N and b_D; the exponent of the density may be negative.
_LOW = np.array([0.0] * 4 + [-_MAX_EXPONENT] + [_MIN_EXPONENT] * 2)
_HIGH = np.array([50.0] * 4 + [_MAX_EXPONENT] * 3)
_NAMES = ("a_S", "c_S", "a_D", "c", "b_S", "b_N", "b_D")
_TINY = 1e-6  # distance at which a variable is at the end of its range
_SIZE = len(_LOW)
# Huber's delta falls to its value in these stages: its multiple, the number of
# iterations and the relative decrease of the loss at which they end.
_STAGES = ((1e3, 40, 1e-3), (10.0, 40, 1e-3), (1.0, 200, 1e-12))
_MAX_STEP = 0.5
_MAX_DAMPING = 1e6
_CHUNK = 1_000  # fits at a time, for the caches of a core


@accepts(
  huber_delta=number(above=0),
  log_loss=flag(),
  starts=COUNT,
  resamples=integer(0),
  seed=SEED,
)
@dataclasses.dataclass(frozen=True)
class FitOptions:
  """How the sparsity law is fitted.

  Attributes:
    huber_delta: residual beyond which the loss of a point grows linearly.
    log_loss: whether residuals are those of the log of the loss.
    starts: number of random starts.
    resamples: of the bootstrap; 0 gives no intervals.
    seed: of the starts and the resamples.
  """

  huber_delta: float
  log_loss: bool
  starts: int
  resamples: int
  seed: int


_ANY = FitOptions(1.0, True, 1, 0, 0)  # where none matters


def fit_sparsity_law(points: pd.DataFrame, options: FitOptions) -> SparsityLaw:
  """Fits the law, from many starts.

  Args:
    points: columns sparsity, nonzero, data and loss, with at least
      `MIN_LEVELS` values of the first three and `MIN_POINTS` rows.
    options: see `FitOptions`.

  Returns:
    The law without bootstrap samples.
  """
  problem = _Problem.of(points, options)
  starts = problem.random_starts(
    options.starts, np.random.default_rng(options.seed)
  )
  values, losses = problem.descend(starts)
  return problem.law(values[losses.argmin()])


def bootstrap_sparsity_law(
  law: SparsityLaw, points: pd.DataFrame, options: FitOptions
) -> SparsityLaw:
  """Returns a law with samples of the Bayesian bootstrap.

  Every resample gives the points random weights, from the flat Dirichlet
  distribution. Points drawn with replacement would have whole numbers as
  weights; then many are missing from a resample, and intervals are too wide.

  Args:
    law: the fit to these points.
    points: see `fit_sparsity_law`.
    options: see `FitOptions`.
  """
  problem = _Problem.of(points, options)
  weights = _draw_weights(points, options, options.resamples)
  start = np.broadcast_to(problem.values(law), (len(weights), _SIZE))
  values, _ = problem.descend(start, weights)
  samples = tuple(problem.law(value).coefficients for value in values)
  return dataclasses.replace(law, bootstrap_samples=samples)


def fit_structure(
  law: SparsityLaw, points: pd.DataFrame, options: FitOptions
) -> SparsityLaw:
  """Fits the law of another structure: its own sparse factor in a known law.

  b_N, a_D, b_D and c are the law's, so that the structure only changes the
  sparse factor. With two levels of sparsity, dense included, b_S is the law's
  as well, and with one so is c_S.

  Args:
    law: of the main structure, with its bootstrap samples.
    points: of the structure and of dense networks; see `fit_sparsity_law`.
    options: see `FitOptions`.

  Returns:
    The law; each of its samples belongs to the law's sample of that place.
  """
  problem = _Problem.of(points, options)
  own = _own_variables(points)

  def fit(laws, weights):
    starts = np.array([problem.values(each) for each in laws])
    low, high = starts.copy(), starts.copy()
    low[:, own], high[:, own] = _LOW[own], _HIGH[own]
    values, _ = problem.descend(starts, weights, low=low, high=high)
    return [problem.law(value) for value in values]

  (best,) = fit([law], None)
  if not law.bootstrap_samples:
    return best
  weights = _draw_weights(points, options, len(law.bootstrap_samples))
  samples = tuple(each.coefficients for each in fit(law.samples(), weights))
  return dataclasses.replace(best, bootstrap_samples=samples)


def log_loss_slopes(
  law: SparsityLaw, points: pd.DataFrame, *, structure: bool = False
) -> np.ndarray:
  """Returns the derivatives of log loss by the variables of a fit [n, p].

  Args:
    law: any.
    points: see `fit_sparsity_law`.
    structure: whether the variables are those of `fit_structure`.
  """
  problem = _Problem.of(points, _ANY)
  values = problem.values(law)[None]
  jacobian, _ = _law_derivatives(values, problem.logs, np.ones((1, 1)))
  slopes = (jacobian / _terms(values, problem.logs).sum(axis=1))[0].T
  return slopes[:, _own_variables(points)] if structure else slopes


def coefficients_at_range_ends(
  law: SparsityLaw, points: pd.DataFrame
) -> list[str]:
  """Returns the coefficients that a fit to these points could not go beyond."""
  values = _Problem.of(points, _ANY).values(law)
  at_end = (values <= _LOW + _TINY) | (values >= _HIGH - _TINY)
  return [name for name, end in zip(_NAMES, at_end) if end]


def _own_variables(points: pd.DataFrame) -> list[int]:
  """Returns the variables that the points of another structure determine."""
  return [0, 1, 4][: len(np.unique(sparsity_levels(points["sparsity"])))]


def _draw_weights(points, options, resamples) -> np.ndarray:
  """Returns the weights of the points in each resample [resamples, points]."""
  generator = np.random.default_rng(options.seed)
  return len(points) * generator.dirichlet(np.ones(len(points)), resamples)


@dataclasses.dataclass(frozen=True)
class _Problem:
  """The points of a fit in scaled units, and the descent.

  Attributes:
    logs: of density, nonzero parameters and data, each [n].
    target: losses or their logs [n].
    scales: of nonzero parameters, data and losses.
    options: of the fit.
  """

  logs: tuple[np.ndarray, ...]
  target: np.ndarray
  scales: tuple[float, float, float]
  options: FitOptions

  @classmethod
  def of(cls, points, options) -> _Problem:
    logs = np.log(points[["nonzero", "data", "loss"]].to_numpy(float).T)
    means = logs.mean(axis=1)
    nonzero, data, loss = logs - means[:, None]
    target = loss if options.log_loss else np.exp(loss)
    density = np.log1p(-points["sparsity"].to_numpy(float))
    scales = tuple(np.exp(means).tolist())
    return cls((density, nonzero, data), target, scales, options)

  @property
  def delta(self) -> float:
    delta = self.options.huber_delta
    return delta if self.options.log_loss else delta / self.scales[2]

  def values(self, law: SparsityLaw) -> np.ndarray:
    """Returns the amplitudes and exponents [7] of a law."""
    nonzero, data, loss = self.scales
    of_size = nonzero**-law.b_N / loss
    amplitudes = [
      law.a_S * of_size,
      law.c_S * of_size,
      (law.a_D / data) ** law.b_D / loss,
      law.c / loss,
    ]
    return np.array([*amplitudes, law.b_S, law.b_N, law.b_D])

  def law(self, values: np.ndarray) -> SparsityLaw:
    """Returns the law of amplitudes and exponents [7]."""
    nonzero, data, loss = self.scales
    of_sparse, of_dense, of_data, floor, b_s, b_n, b_d = values.tolist()
    of_size = nonzero**b_n * loss
    with np.errstate(divide="ignore"):
      log_of_data = np.log(of_data * loss)
    predicted = _terms(values[None], self.logs).sum(axis=1)[0]
    log_loss = self.target if self.options.log_loss else np.log(self.target)
    even = np.full((1, len(self.target)), 1.0 / len(self.target))
    mean, *_ = self._residuals(values[None], even, self.delta)
    unit = 1.0 if self.options.log_loss else loss
    return SparsityLaw(
      a_S=of_sparse * of_size,
      b_S=b_s,
      c_S=of_dense * of_size,
      b_N=b_n,
      # With b_D at its lower end the power may be beyond float64.
      a_D=data * float(np.exp(min(log_of_data / b_d, 600.0))),
      b_D=b_d,
      c=floor * loss,
      points=len(self.target),
      rms=float(np.sqrt(np.mean((np.log(predicted) - log_loss) ** 2))),
      objective=float(mean[0]) * unit**2,
    )

  def random_starts(self, count: int, generator) -> np.ndarray:
    """Returns amplitudes and exponents [count, 7]: a mean loss of about 1."""
    floor = generator.uniform(0.05, 0.95, (count, 1))
    shares = (1.0 - floor) * generator.dirichlet(np.ones(3), count)
    exponents = np.exp(generator.uniform(np.log(0.05), np.log(2), (count, 3)))
    return np.concatenate([shares, floor, exponents], axis=1)

  def descend(self, starts, weights=None, *, low=_LOW, high=_HIGH):
    """Minimizes the Huber loss from each start.

    Args:
      starts: [m, 7].
      weights: of the points [m, n]; None is 1 each.
      low: bounds that broadcast to [m, 7].
      high: as `low`.

    Returns:
      The minima [m, 7] and their losses [m].
    """
    shape = len(starts), len(self.target)
    weights = np.broadcast_to(1.0 if weights is None else weights, shape)
    low, high = (np.broadcast_to(x, starts.shape) for x in (low, high))
    values, losses = np.clip(starts, low, high), np.empty(len(starts))
    for first in range(0, len(starts), _CHUNK):
      part = slice(first, first + _CHUNK)
      bounds = low[part], high[part]
      for stage in _STAGES:
        values[part], losses[part] = self._newton(
          values[part], weights[part], bounds, *stage
        )
    return values, losses

  def _newton(self, values, weights, bounds, wider, iterations, tolerance):
    """Runs damped Newton steps, projected to the bounds."""
    delta = wider * self.delta
    values, damping = values.copy(), np.full(len(values), 1e-3)
    losses, live = np.full(len(values), np.inf), np.arange(len(values))
    for _ in range(iterations):
      old, part = values[live], weights[live]
      low, high = (bound[live] for bound in bounds)
      before, gradient, hessian = self._derivatives(old, part, delta)
      step = _step(old, gradient, hessian, damping[live], low, high)
      new = np.clip(old + step, low, high)
      after, *_ = self._residuals(new, part, delta)
      better = after < before
      values[live[better]] = new[better]
      losses[live] = np.where(better, after, before)
      damping[live] *= np.where(better, 0.3, 4.0)
      done = np.where(
        better,
        before - after <= tolerance * before,
        damping[live] > _MAX_DAMPING,
      )
      live = live[~done]
      if not len(live):
        break
    return values, losses

  def _residuals(self, values, weights, delta):
    """Returns the losses [m], predictions [m, n] and residuals [m, n]."""
    predicted = _terms(values, self.logs).sum(axis=1)
    observed = np.log(predicted) if self.options.log_loss else predicted
    residuals = observed - self.target
    size = np.abs(residuals)
    each = np.where(size <= delta, 0.5 * size**2, delta * (size - 0.5 * delta))
    return (weights * each).sum(axis=1), predicted, residuals

  def _derivatives(self, values, weights, delta):
    """Returns the losses [m], gradients [m, 7] and Hessians [m, 7, 7]."""
    losses, predicted, residuals = self._residuals(values, weights, delta)
    slope = weights * np.clip(residuals, -delta, delta)
    curve = weights * (np.abs(residuals) <= delta)
    unit = predicted if self.options.log_loss else np.ones_like(predicted)
    jacobian, second = _law_derivatives(values, self.logs, slope / unit)
    jacobian = jacobian / unit[:, None]
    if self.options.log_loss:
      curve = curve - slope
    gradient = (jacobian @ slope[..., None])[..., 0]
    hessian = (jacobian * curve[:, None]) @ jacobian.transpose(0, 2, 1)
    return losses, gradient, hessian + second


def _powers(values, logs):
  """Returns the four terms without their amplitudes [m, 4, n]."""
  density, nonzero, data = logs
  b_s, b_n, b_d = values[:, 4:, None].transpose(1, 0, 2)
  of_size = np.exp(-b_n * nonzero)
  of_density, of_data = np.exp(b_s * density), np.exp(-b_d * data)
  return np.stack(
    [of_density * of_size, of_size, of_data, np.ones_like(of_data)], axis=1
  )


def _terms(values, logs):
  return values[:, :4, None] * _powers(values, logs)


def _law_derivatives(values, logs, weights):
  """Differentiates the law twice.

  Args:
    values: [m, 7].
    logs: see `_Problem`.
    weights: of the points [m, n].

  Returns:
    The Jacobians [m, 7, n], and the weighted sums over the points of the second
    derivatives [m, 7, 7].
  """
  density, nonzero, data = logs
  powers = _powers(values, logs)
  terms = values[:, :4, None] * powers
  of_size = terms[:, 0] + terms[:, 1]
  exponents = np.stack(
    [terms[:, 0] * density, -of_size * nonzero, -terms[:, 2] * data], axis=1
  )
  second = np.zeros((len(values), _SIZE, _SIZE))
  logs = np.stack([density, -nonzero, -data])
  # Of amplitudes (rows) and exponents (columns): which are in one term.
  for row, column in ((0, 0), (0, 1), (1, 1), (2, 2)):
    mixed = weights * powers[:, row] * logs[column]
    second[:, row, 4 + column] = mixed.sum(axis=1)
  for row, column, term in ((0, 0, 0), (0, 1, 0), (1, 1, None), (2, 2, 2)):
    term = of_size if term is None else terms[:, term]
    mixed = weights * term * logs[row] * logs[column]
    second[:, 4 + row, 4 + column] = mixed.sum(axis=1)
  upper = np.triu(second, 1)
  second = second + upper.transpose(0, 2, 1)
  return np.concatenate([powers, exponents], axis=1), second


def _step(values, gradient, hessian, damping, low, high):
  """Returns the Newton steps [m, 7] of the variables that can move.

  Negative curvature counts as positive, and the damping shortens the step.
  """
  stuck = (values <= low) & (gradient > 0) | (values >= high) & (gradient < 0)
  free = ~(stuck | (low == high))
  gradient = np.where(free, gradient, 0.0)
  hessian = np.where(free[:, :, None] & free[:, None], hessian, 0.0)
  curvatures, basis = np.linalg.eigh(hessian)
  curvatures = np.abs(curvatures)
  most = np.maximum(curvatures.max(axis=1, keepdims=True), 1e-300)
  curvatures = curvatures + damping[:, None] * most
  along = (basis.transpose(0, 2, 1) @ gradient[..., None])[..., 0]
  step = -(basis @ (along / curvatures)[..., None])[..., 0]
  longest = np.abs(step).max(axis=1, keepdims=True)
  return step * np.minimum(1.0, _MAX_STEP / np.maximum(longest, 1e-300))
