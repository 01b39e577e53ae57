"""Every number has a range: in gin files, and where it is taken."""

import importlib
import inspect
import math
import pathlib
import re

import numpy as np
import pytest

from nfnets_tf.config import Configuration
from nfnets_tf.config import bindings as bindings_lib
from nfnets_tf.config.config import check_ranges
from nfnets_tf.data import augmentation, preprocessing
from nfnets_tf.errors import UserError
from nfnets_tf.keras_api import keras
from nfnets_tf.models.nfnet import NFNet
from nfnets_tf.optim import schedules
from nfnets_tf.optim.adaptive_clipping import AGC
from nfnets_tf.optim.sam import SAM
from nfnets_tf.optim.sgd import SGD
from nfnets_tf.ranges import (
  SEED,
  accepts,
  declared,
  each,
  integer,
  number,
  optional,
)
from nfnets_tf.train.classifier import Classifier

ROOT = pathlib.Path(__file__).parents[1]
NOT_NUMBERS = (math.nan, math.inf, True, "0.1", (224, 224))
WRONG = (*NOT_NUMBERS, None, -1e9, 1e300)
# Where a negative number is meant to be valid.
NEGATIVE = {"skip_gain"}


def is_number(value):
  return isinstance(value, (int, float)) and not isinstance(value, bool)


def numeric_bindings():
  """Yields (bindings, name) of every number that a gin file gives."""
  seen = set()
  for path in sorted(ROOT.glob("gin/**/*.gin")):
    bindings = bindings_lib.parse([path.relative_to(ROOT).as_posix()])
    for name in bindings:
      if bindings_lib.is_macro(name) or name.startswith("config.grid."):
        continue
      _, value = bindings.value(name)
      key = bindings_lib.split_parameter(name)[1:]
      if is_number(value) and key not in seen:
        seen.add(key)
        yield bindings, name


def refusal(bindings, name, value):
  """Returns the message about a value; fails if it is accepted."""
  origin, before = bindings.value(name)
  bindings.set(origin, value, "here")
  try:
    check_ranges(bindings)
  except UserError as error:
    return str(error)
  finally:
    bindings.set(origin, before, "here")
  raise AssertionError(f"{origin} = {value!r} is accepted")


def bounds_of(bindings, name):
  """Returns values that the parameter of a binding may well accept."""
  _, selector, parameter = bindings_lib.split_parameter(name)
  words = declared(bindings.resolve(selector))[parameter].words
  accepted = {None} if "None" in words else set()
  if parameter in NEGATIVE:
    accepted |= {-1e9}
  return accepted


def test_every_number_of_every_gin_file_has_a_range():
  count = 0
  for bindings, name in numeric_bindings():
    origin, _ = bindings.value(name)
    check_ranges(bindings)  # as the file gives it
    for value in set(WRONG) - bounds_of(bindings, name):
      message = refusal(bindings, name, value)
      assert re.match(rf"here: {re.escape(origin)} = .* is invalid; ", message)
      count += 1
  assert count > 300  # a naive count: some 45 parameters, 7 values each


def classes_of_gin_files():
  """Yields the classes and functions that gin files can name, of all modules.

  Those are the public ones of the modules that some gin file imports.
  """
  modules = set()
  for path in sorted(ROOT.glob("gin/**/*.gin")):
    parsed = bindings_lib.parse([path.relative_to(ROOT).as_posix()])
    modules |= {s.module for s in parsed.imports.values()}
  for name in sorted(modules):
    module = importlib.import_module(name)
    for item in vars(module).values():
      public = getattr(item, "__name__", "_")[0] != "_"
      if callable(item) and public and item.__module__ == name:
        yield item


# Not bound by configurations: what code passes from one part to another.
INTERNAL = re.compile(
  r"\.(DataStream|ShardReport|NFBlock|SparsityLaw)\."
  r"|\.(layers|adaptive_clipping)\.[a-z_]+\."
  r"|\.(dry_run|errors|shard_tasks|check_shards|randaugment)\.[a-z_]+\."
)


def test_every_numeric_default_has_a_range():
  missing = []
  for item in classes_of_gin_files():
    for name, parameter in inspect.signature(item).parameters.items():
      if is_number(parameter.default) and name not in declared(item):
        missing.append(f"{item.__module__}.{item.__qualname__}.{name}")
  assert [name for name in missing if not INTERNAL.search(name)] == []


def network():
  return keras.Sequential([keras.layers.Dense(3, input_shape=[4])])


DIRECT = [
  (lambda x: SGD(x), "SGD.learning_rate"),
  (lambda x: SGD(0.1, momentum=x), "SGD.momentum"),
  (lambda x: SGD(0.1, weight_decay=x), "SGD.weight_decay"),
  (lambda x: SGD(0.1, clipping_eps=x), "SGD.clipping_eps"),
  (lambda x: AGC(keras.optimizers.Adam(), eps=x), "AGC.eps"),
  (lambda x: SAM(x), "SAM.rho"),
  (lambda x: SAM(ascent_fraction=x), "SAM.ascent_fraction"),
  (lambda x: Classifier(network(), label_smoothing=x), "label_smoothing"),
  (lambda x: Classifier(network(), layer_decay=x), "Classifier.layer_decay"),
  (lambda x: NFNet("femto", x), "NFNet.num_classes"),
  (lambda x: NFNet("femto", stochdepth_rate=x), "NFNet.stochdepth_rate"),
  (lambda x: augmentation.MixUp(alpha=x), "MixUp.alpha"),
  (lambda x: augmentation.RandomErasing(probability=x), "probability"),
  (lambda x: preprocessing.Resize(image_size=x), "Resize.image_size"),
  (
    lambda x: schedules.warmup_cosine(peak=x, warmup_steps=0, total_steps=9),
    "warmup_cosine.peak",
  ),
]


@pytest.mark.parametrize("build, name", DIRECT, ids=[n for _, n in DIRECT])
def test_objects_built_in_python_refuse_the_same_values(build, name):
  for value in (*NOT_NUMBERS, None, -1e9):
    with pytest.raises(UserError, match=f"{name} = .* is invalid; expected a"):
      build(value)


def test_numbers_of_numpy_are_numbers():
  half, one = np.float32(0.5), np.int64(1)
  SGD(half, momentum=half, weight_decay=np.float64(0))
  assert SAM(half, every=one).every == 1
  Classifier(network(), label_smoothing=half, micro_batches=one)
  assert preprocessing.Resize(image_size=np.int32(8)).image_size == 8
  for value in (np.float32("nan"), np.bool_(True)):
    with pytest.raises(UserError, match="SAM.rho"):
      SAM(value)


def test_own_classes_can_declare_ranges():
  @accepts(size=integer(1, 9), scale=optional(number(above=0)), pair=each(SEED))
  class Mine:
    def __init__(self, size, *, scale=None, pair=()):
      self.all = size, scale, pair

  assert Mine(1, scale=2.0, pair=[0, 1]).all == (1, 2.0, [0, 1])
  assert set(declared(Mine)) == {"size", "scale", "pair"}
  with pytest.raises(UserError, match="size = 10 .* an integer from 1 to 9"):
    Mine(10)
  with pytest.raises(UserError, match=r"scale = 0 .* > 0, or None"):
    Mine(1, scale=0)
  with pytest.raises(
    UserError, match=r"pair = \[-1\] .* a list, each an integer"
  ):
    Mine(1, pair=[-1])
  with pytest.raises(TypeError, match="unexpected keyword argument 'shape'"):
    Mine(1, shape=2)


# What gin files may bind, and what is wrong with it.
COMBINATIONS = [
  (["POLICY = 'fp16'"], "POLICY = 'fp16' .* 'float32' or 'mixed_bfloat16'"),
  (["POLICY = 'mixed_float16'"], "POLICY = 'mixed_float16' is invalid"),
  (["STRATEGY = 'mirrored'"], "a reference without quotes, such as @distr"),
  (["EPOCHS = 0"], "EPOCHS = 0 is invalid"),
  (["EPOCHS = 0.001"], "less than one batch"),
  (
    ["EPOCHS = 1", "schedules.fraction_of_steps.fraction = 1"],
    "a warm-up short",
  ),
  (["EPOCHS = 1e30"], "total_steps = .* from 1 to 1,000,000,000,000"),
  (["PEAK_LR = 1e300"], r"PEAK_LR = 1e\+300 is invalid"),
  (["BATCH_SIZE = 99999999999999999999"], "BATCH_SIZE = 9999"),
  (["NUM_CLASSES = 1"], "NUM_CLASSES = 1 is invalid; expected an integer >= 2"),
  (["SEED = -1"], "SEED = -1"),
  (["SEED = 99999999999999999999"], "SEED = 9999999999999999"),
  (["classifier.Classifier.ema_decay = 1"], "ema_decay = 1"),
  (["nfnet.NFNet.drop_rate = 1"], "drop_rate = 1"),
  (["IMAGE_SIZE = 8"], "8 pixels are too small for NFNet nano.* 17 or more"),
  (
    ["MULTIPLICITY = 3"],
    "batch_size = 64 .* a multiple of 3, for MULTIPLICITY",
  ),
  (["run_config.Schedule.steps_per_execution = 1e9"], "an integer >= 1"),
  (["TRAIN_TRANSFORMS = [@preprocessing.Resize]"], "TRANSFORMS = .*parenthe"),
  (["TRAIN_TRANSFORMS = @preprocessing.Resize()"], "transforms = .* a list, e"),
  (
    ["run_config.OptimizationConfig.sam = @sam.SAM"],
    r"OptimizationConfig.sam = .* with parentheses, such as @sam.SAM\(\)",
  ),
  (["sgd.SGD.nesterov = 'False'"], "nesterov = 'False' .* True or False"),
]


@pytest.mark.parametrize("params, words", COMBINATIONS, ids=str)
def test_a_dry_run_refuses_what_cannot_be_trained(params, words):
  with pytest.raises(UserError, match=words):
    Configuration(["gin/quickstart.gin"], params).build_job().plan()


def test_a_sweep_refuses_a_value_of_any_point():
  with pytest.raises(UserError, match=r"EPOCHS = -8 is invalid"):
    Configuration(["gin/sweeps/jft.gin"], ["config.grid.EPOCHS = (1, -8)"])


def test_keras_optimizers_of_a_gin_file_have_ranges():
  files = ["gin/quickstart.gin", "gin/overlays/adamw.gin"]
  for name, value in (("weight_decay", -1), ("beta_1", 1), ("epsilon", "0")):
    binding = f"keras_api.keras.optimizers.AdamW.{name} = {value!r}"
    with pytest.raises(UserError, match=f"AdamW.{name} = .* is invalid"):
      Configuration(files, [binding])
