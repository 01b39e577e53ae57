"""Compares the program of two replicas with the step of one device.

The program that `programs.lower` makes of a step is run by jaxlib on two
replicas of the CPU, and the project's own step by TensorFlow on one device with
the whole batch. Weights, momentum, averages and metrics must agree.
"""

from __future__ import annotations

import dataclasses
import pathlib
import tempfile
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf

from nfnets_tf.keras_api import keras
from tools.tpu_check import environment, programs

STEPS = 2
TOLERANCE = 1e-5
_REPLICAS = 2
_NFNET = ("gin/quickstart.gin",)
# The network of the tests, which is traced in a tenth of the time.
_TINY = ("gin/quickstart.gin", "tests/support/tiny.gin")
_BINDINGS = (
  "BATCH_SIZE = 8",
  "POLICY = 'float32'",
  "classifier.Classifier.ema_decay = 0.9",
  "sgd.SGD.clipping = 0.01",
  "schedules.warmup_cosine.warmup_steps = 0",
)
_REGULARIZED = (
  "VARIANT = 'femto'",
  "nfnet.NFNet.drop_rate = 0.3",
  "nfnet.NFNet.stochdepth_rate = 0.5",
)
_TWO_MICRO_BATCHES = "classifier.Classifier.micro_batches = 2"


def _sam(scope: str) -> tuple[str, ...]:
  return (
    "run_config.OptimizationConfig.sam = @sam.SAM()",
    "sam.SAM.rho = 0.05",
    f"sam.SAM.scope = {scope!r}",
  )


@dataclasses.dataclass(frozen=True)
class Case:
  """A kind of step.

  Attributes:
    files: gin files of the run.
    program: further bindings of the program of two replicas.
    reference: further bindings of the step on one device.
  """

  files: tuple[str, ...]
  program: tuple[str, ...] = ()
  reference: tuple[str, ...] = ()


CASES = {
  "nfnet": Case(_NFNET, _REGULARIZED, _REGULARIZED),
  "micro_batches": Case(_TINY, (_TWO_MICRO_BATCHES,)),
  "sam_global": Case(_TINY, _sam("global"), _sam("global")),
  # One device mimics two replicas by two micro-batches.
  "sam_replica": Case(
    _TINY, _sam("replica"), (*_sam("micro_batch"), _TWO_MICRO_BATCHES)
  ),
}


@dataclasses.dataclass(frozen=True)
class Comparison:
  """How far the program is from the step of one device.

  Attributes:
    errors: {kind of variable: largest difference, relative to the variable's
      largest value if that is above 1}.
    moved: largest change of a weight by the steps.
    replicas_agree: whether both replicas have the same bits.
    all_reduces: in the program.
  """

  errors: Mapping[str, float]
  moved: float
  replicas_agree: bool
  all_reduces: int

  @property
  def passed(self) -> bool:
    """Whether the program computes the same."""
    close = max(self.errors.values()) <= TOLERANCE
    return close and self.replicas_agree and self.moved > 10 * TOLERANCE


def verify(case: Case, folder: pathlib.Path) -> Comparison:
  """Runs a case.

  Args:
    case: one of `CASES`.
    folder: of the compiler's environment.
  """
  job = _load(case.files, case.program)
  program = programs.lower(job, replicas=_REPLICAS, with_values=True)
  spec = programs.batch_spec(job, step="train", replicas=1)
  batches = [
    _make_batch(spec, job.data.num_classes, seed) for seed in range(STEPS)
  ]
  copies = _run_program(program, batches, folder)
  labels = [each["label"] for each in program.facts["captured"]]
  before = dict(zip(labels, program.values))
  reference = _load(case.files, case.reference)
  after = _run_reference(reference, before, spec, batches)
  return _compare(program.facts, before, copies, after)


def _load(files: Sequence[str], bindings: Sequence[str]):
  return programs.load_job(files, (*_BINDINGS, *bindings))


def _make_batch(spec, num_classes: int, seed: int) -> list[np.ndarray]:
  """Returns random tensors of a batch; one example has weight 0."""
  random = np.random.default_rng(seed)
  tensors = []
  for tensor in tf.nest.flatten(spec):
    dtype = tensor.dtype.as_numpy_dtype
    if tensor.dtype.is_integer:
      top = 256 if len(tensor.shape) > 1 else num_classes
      tensors.append(random.integers(0, top, tensor.shape).astype(dtype))
    else:
      tensors.append(random.uniform(size=tensor.shape).astype(dtype))
  tensors[-1] = np.ones_like(tensors[-1])
  tensors[-1][1] = 0
  return tensors


def _run_program(
  program: programs.Program,
  batches: Sequence[Sequence[np.ndarray]],
  folder: pathlib.Path,
) -> list[list[np.ndarray]]:
  """Returns each captured variable's value on each replica after the steps."""
  with tempfile.TemporaryDirectory() as temporary:
    paths = {
      name: str(pathlib.Path(temporary, f"{name}.npz"))
      for name in ("values", "batches", "results")
    }
    program.write(pathlib.Path(temporary, "train"))
    values = {str(i): value for i, value in enumerate(program.values)}
    np.savez(paths["values"], **values)
    tensors = {
      f"{step}/{i}": tensor
      for step, batch in enumerate(batches)
      for i, tensor in enumerate(batch)
    }
    np.savez(paths["batches"], **tensors)
    request = {
      "program": str(pathlib.Path(temporary, "train.stablehlo")),
      "steps": len(batches),
      **paths,
    }
    environment.run_task(folder, "run", request)
    with np.load(paths["results"]) as results:
      return [
        [results[f"{i}/{replica}"] for replica in range(_REPLICAS)]
        for i in range(len(values))
      ]


def _run_reference(job, before, spec, batches) -> dict[str, np.ndarray]:
  """Returns {label: value} after the steps of one device."""
  keras.utils.set_random_seed(job.seed)
  classifier = job.build_classifier(tf.distribute.OneDeviceStrategy("CPU:0"))
  variables = programs.label_variables(classifier)
  for label, value in before.items():
    if label in variables:
      variables[label].assign(value)
  step = programs.step_function(classifier, "train", spec, compiled=False)
  for batch in batches:
    step(*map(tf.constant, batch))
  return {label: v.numpy() for label, v in variables.items()}


def _compare(facts, before, copies, after) -> Comparison:
  errors: dict[str, float] = {}
  agree, moved = True, 0.0
  for described, replicas in zip(facts["captured"], copies):
    label = described["label"]
    if label not in after:
      continue
    value = replicas[0]
    agree = agree and all(np.array_equal(value, x) for x in replicas)
    expected = after[label]
    scale = max(1.0, float(np.max(np.abs(expected), initial=0.0)))
    error = float(np.max(np.abs(value - expected), initial=0.0)) / scale
    kind = label.partition("/")[0]
    errors[kind] = max(errors.get(kind, 0.0), error)
    if kind == "weight":
      moved = max(moved, float(np.max(np.abs(value - before[label]))))
  return Comparison(errors, moved, agree, facts["all_reduces"]["count"])
