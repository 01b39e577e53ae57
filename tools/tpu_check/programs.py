"""Lowers the step of a run to the program of one replica of a TPU slice."""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
import pathlib
import time
from collections.abc import Mapping, Sequence

import tensorflow as tf

import nfnets_tf
from nfnets_tf.config import Configuration
from nfnets_tf.data.dataset_info import SplitInfo
from nfnets_tf.data.pipeline import DataStream
from nfnets_tf.errors import UserError
from nfnets_tf.jobs.train import TrainJob
from nfnets_tf.keras_api import keras
from nfnets_tf.models import cost
from nfnets_tf.models.nfnet import NFNet
from nfnets_tf.scaling import compute
from nfnets_tf.train.classifier import Classifier
from tools.tpu_check.pretended_tpu import AllReduce, pretended_tpu

STEPS = ("train", "eval")


@dataclasses.dataclass(frozen=True)
class Program:
  """A lowered step.

  Attributes:
    code: StableHLO bytecode, of XLA's replica-parallel kind.
    facts: what `write` puts beside it as JSON.
    values: those of the captured variables, parallel to the arguments after
      the inputs in `facts`; empty unless they were asked for.
  """

  code: bytes
  facts: dict
  values: list

  def write(self, path: str | pathlib.Path) -> None:
    """Writes PATH.stablehlo and PATH.json."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_name(f"{path.name}.stablehlo").write_bytes(self.code)
    text = json.dumps(self.facts, indent=1)
    path.with_name(f"{path.name}.json").write_text(f"{text}\n")


def load_job(gin_files: Sequence[str], gin_params: Sequence[str]) -> TrainJob:
  """Builds the training job of gin files and bindings.

  Raises:
    UserError: if they are invalid, or configure something else.
  """
  configuration = Configuration(gin_files, gin_params)
  if configuration.is_sweep:
    raise UserError(
      f"{gin_files[0]} is a sweep; expected a single run: bind"
      " config.Launch.sweep to None."
    )
  job = configuration.build_job()
  if not isinstance(job, TrainJob):
    raise UserError(
      f"{gin_files[0]} configures a {type(job).__name__}; expected a training"
      " run, such as gin/f0_jft.gin."
    )
  return job


def batch_spec(job: TrainJob, *, step: str, replicas: int):
  """Returns the structure of a replica's batch; no data needs to exist.

  Args:
    job: of the run.
    step: "train" or "eval".
    replicas: that share a batch.

  Returns:
    (images, labels, weights), `tf.TensorSpec` or structures of them.

  Raises:
    UserError: if the batch does not divide among the replicas.
  """
  data = job.data
  if replicas < 1 or data.batch_size % replicas:
    raise UserError(
      f"BATCH_SIZE = {data.batch_size} does not divide among {replicas} chips;"
      " bind BATCH_SIZE to a multiple of the number of chips, or take another"
      " slice."
    )
  data.check_copies(replicas)
  split = data.train_split if step == "train" else data.heldout_split
  info = SplitInfo(
    files=("",),
    counts=(data.num_examples,),
    num_classes=data.num_classes,
    class_names=(),
  )
  if step == "eval":
    batches = split.evaluation_batches(
      info, host_batch=data.batch_size, replicas=replicas
    )
  else:
    split.data_service = None
    stream = DataStream(batch_size=data.batch_size, shuffle_buffer=1, seed=0)
    batches = split.training_batches(
      info, stream=stream, start_step=0, replicas=replicas
    )
  size = data.batch_size // replicas
  return tf.nest.map_structure(
    lambda spec: tf.TensorSpec([size, *spec.shape[1:]], spec.dtype),
    batches.element_spec,
  )


def lower(
  job: TrainJob,
  *,
  replicas: int,
  step: str = "train",
  with_values: bool = False,
) -> Program:
  """Traces a step under TPUStrategy and lowers it; runs nothing.

  Args:
    job: of the run; its own strategy is not used.
    replicas: number of chips.
    step: "train" or "eval".
    with_values: whether to return the initial values of the variables.

  Raises:
    UserError: if the batch does not divide among the replicas, or under
      another TensorFlow than 2.20.
  """
  keras.utils.set_random_seed(job.seed)
  keras.mixed_precision.set_global_policy(job.devices.policy)
  spec = batch_spec(job, step=step, replicas=replicas)
  inputs = tf.nest.flatten(spec)
  times = [time.monotonic()]
  with pretended_tpu(replicas) as pretended:
    classifier = job.build_classifier(pretended.strategy)
    traced = step_function(classifier, step, spec)
    concrete = traced.get_concrete_function(*inputs)
    times.append(time.monotonic())
    code = traced.experimental_get_compiler_ir(*inputs)(
      stage="stablehlo_serialized", platform_name="CPU"
    )
    times.append(time.monotonic())
  facts = {
    "step": step,
    "run": _describe_run(job, classifier, spec, replicas),
    "key": _table_key(classifier, spec, step),
    "flops_per_replica": _count_flops(classifier, spec, step),
    "inputs": [{"shape": list(x.shape), "dtype": x.dtype.name} for x in inputs],
    "captured": _describe_captured(concrete, label_variables(classifier)),
    "all_reduces": _sum_up(pretended.all_reduces),
    "graph_operations": len(concrete.graph.get_operations()),
    "seconds": {
      name: round(end - start, 1)
      for name, start, end in zip(("trace", "lower"), times, times[1:])
    },
    "versions": _versions(),
    "date": datetime.date.today().isoformat(),
  }
  values = []
  if with_values:
    values = [_read(each).numpy() for each in concrete.captured_inputs]
  return Program(code, facts, values)


def step_function(
  classifier: Classifier, step: str, spec, *, compiled: bool = True
):
  """Returns the function of a batch's tensors that the training loop runs.

  Args:
    classifier: compiled under its strategy.
    step: "train" or "eval".
    spec: structure of the batch.
    compiled: whether XLA compiles it.
  """
  update = {"train": classifier.make_step, "eval": classifier.score_batch}[step]
  strategy = classifier.distribute_strategy

  @tf.function(jit_compile=compiled, autograph=False)
  def run(*tensors):
    batch = tf.nest.pack_sequence_as(spec, tensors)
    strategy.run(update, args=(batch,))

  return run


def label_variables(classifier: Classifier) -> dict[str, tf.Variable]:
  """Returns {label: variable} of all that a step may read or write.

  The labels of one run are the same under every strategy.
  """
  optimizer = classifier.optimizer
  labeled = {f"weight/{k}": v for k, v in classifier.named_weights().items()}
  averages = classifier.named_averages().items()
  labeled.update({f"average/{name}": v for name, v in averages})
  labeled["guard/consecutive_skips"] = classifier.guard.consecutive_skips
  groups = {"optimizer": optimizer.variables}
  groups.update({f"metric/{m.name}": m.variables for m in classifier.metrics})
  for group, members in groups.items():
    members = members() if callable(members) else members
    labeled.update({f"{group}/{i}": v for i, v in enumerate(members)})
  return labeled


def _sum_up(all_reduces: Sequence[AllReduce]) -> dict[str, int]:
  return {
    "count": len(all_reduces),
    "bytes": sum(each.num_bytes for each in all_reduces),
  }


def _versions() -> dict[str, str]:
  return {
    "nfnets_tf": nfnets_tf.__version__,
    "tensorflow": tf.__version__,
    "keras": keras.__version__,
  }


def _describe_run(job, classifier, spec, replicas) -> dict:
  network, sam = classifier.network, classifier.sam
  images = tf.nest.flatten(spec)[0]
  return {
    "variant": job.model.variant,
    "network": network.get_config() if network.name == "nfnet" else {},
    "num_classes": job.data.num_classes,
    "parameters": sum(cost.count_parameters(network)),
    "image_size": images.shape[1],
    "batch_size": job.data.batch_size,
    "replicas": replicas,
    "batch_per_replica": images.shape[0],
    "micro_batches": classifier.micro_batches,
    "policy": job.devices.policy,
    "sam": None if sam is None else sam.get_config(),
    "ema_decay": classifier.ema_decay,
  }


def _table_key(classifier: Classifier, spec, step: str) -> dict:
  """Returns the key of the program in the package's table."""
  network = classifier.network
  if not isinstance(network, NFNet):
    return {}
  return compute.program_key(
    network,
    image_size=tf.nest.flatten(spec)[0].shape[1],
    policy=keras.mixed_precision.global_policy().name,
    optimizer=type(classifier.optimizer).__name__,
    sam=classifier.sam,
    micro_batches=classifier.micro_batches,
    ema_decay=classifier.ema_decay,
    step=step,
  )


def _count_flops(classifier, spec, step: str) -> float:
  """Counts what convolutions and matrix products take on one replica."""
  images = tf.nest.flatten(spec)[0].shape
  macs = cost.count_macs(classifier.network, images[1])
  if step == "eval":
    return 2.0 * macs * images[0]
  sam = classifier.sam
  passes = 1.0 if sam is None else 1.0 + sam.ascent_examples(1000) / 1000
  return compute.training_flops(macs, passes * images[0])


def _describe_captured(
  concrete, variables: Mapping[str, tf.Variable]
) -> list[dict]:
  """Returns a label, shape and type for each captured argument."""
  known = {id(_handle(v)): label for label, v in variables.items()}
  described = []
  for index, tensor in enumerate(concrete.captured_inputs):
    # Others are constants, and Keras' copy of the learning rate.
    label = known.get(id(tensor), f"other/{index}")
    value = _read(tensor)
    described.append(
      {
        "label": label,
        "shape": list(value.shape),
        "dtype": value.dtype.name,
        "bytes": math.prod(value.shape) * value.dtype.size,
      }
    )
  return described


def _handle(variable: tf.Variable) -> tf.Tensor:
  copies = getattr(variable, "values", None)
  return (variable if copies is None else copies[0]).handle


def _read(captured: tf.Tensor) -> tf.Tensor:
  """Returns the value of a captured tensor, or of the variable it refers to."""
  if captured.dtype != tf.resource:
    return captured
  dtype = tf.as_dtype(captured._handle_data.shape_and_type[0].dtype)
  return tf.raw_ops.ReadVariableOp(resource=captured, dtype=dtype)
