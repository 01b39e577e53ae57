"""Speed of the input pipeline relative to the simplest equivalent.

  python -m benchmarks.input_pipeline --images=FOLDER [--timm=PYTHON]

Decodes and augments the images of a folder (at any depth), writes them as
shards and reads these, each next to the plainest code with the same result. The
last line is a JSON object of ratios of speeds from the same run:

  crop_over_decode: random crop, resize to 224, flip; over decoding the same
      crops and nothing else
  randaugment_over_model_garden: four layers at magnitude 10 on images of 224
      pixels; over the Model Garden's
  randaugment_in_pipeline: the same with decode, crop and flip before both
  crop_over_timm, randaugment_over_timm: from JPEGs to images, with and without
      RandAugment; over timm's, in PYTHON, an interpreter that has it
  read_over_sequential: shuffled records of shards; over reading the same files
      one after another. Both from disk: the page cache is dropped before each
      turn
  read_over_tensorflow: the same, over TensorFlow's own reader of the files
  deterministic_over_free: shards to batches in our order; over the same stages
      in the order in which threads finish
  surviving_over_plain: batches in our order, where an invalid record keeps its
      place; over a pipeline that it would end
"""

import json
import statistics
import tempfile

import tensorflow as tf
from absl import flags
from official.vision.ops import augment

from benchmarks import entry, jpegs
from benchmarks.lockstep import Worker
from benchmarks.timing import median_ratio, seconds_side_by_side
from nfnets_tf.data import preprocessing, randaugment
from nfnets_tf.data.dataset_info import read_split_info
from nfnets_tf.data.loading import (
  ExampleLoader,
  dataset_options,
  map_skipping_errors,
  parallel_calls,
)
from nfnets_tf.data.shuffle import ShardedShuffle

_IMAGES = flags.DEFINE_string("images", None, "Folder of JPEGs.", required=True)
_TIMM = flags.DEFINE_string("timm", None, "Interpreter that has timm.")
_ROUNDS = flags.DEFINE_integer("rounds", 7, "Times each is measured.")
_COUNT = flags.DEFINE_integer("count", 500, "Images of a measurement.")
_SIZE, _LAYERS, _MAGNITUDE = 224, 4, 10
_SHARDS, _BATCH, _WINDOW = 64, 64, 16


def main() -> None:
  """Prints images per second and, last, the ratios as JSON."""
  encoded = jpegs.read(_IMAGES.value, _COUNT.value, at_least=_BATCH)
  with tempfile.TemporaryDirectory() as folder:
    jpegs.write_shards(folder, encoded, _SHARDS)
    print(json.dumps(_measure(encoded, folder)))


def _measure(encoded, folder) -> dict[str, float]:
  images, count = tf.constant(encoded), len(encoded)
  crop = preprocessing.InceptionCrop(image_size=_SIZE)

  def crop_and_flip(i):
    both = preprocessing.compose([crop, preprocessing.Flip()])
    return both(images[i], tf.stack([0, i]))

  seeds = [tf.constant([0, i], tf.int64) for i in range(count)]
  shapes = map(tf.io.extract_jpeg_shape, images)
  boxes = tf.stack([crop.sample_box(x, seed) for x, seed in zip(shapes, seeds)])
  functions = {
    "crop, resize, flip": crop_and_flip,
    "decode": lambda i: tf.io.decode_and_crop_jpeg(
      images[i], boxes[i], channels=3
    ),
  }
  ratios = _compare(
    {name: _mapped(f, count) for name, f in functions.items()},
    count,
    crop_over_decode=("crop, resize, flip", "decode"),
  )
  numbers = tf.range(count, dtype=tf.int64)
  ready = tf.stack([crop_and_flip(i) for i in numbers])
  for name, source in (
    ("randaugment_over_model_garden", lambda i: ready[i]),
    ("randaugment_in_pipeline", crop_and_flip),
  ):
    functions = _randaugment(source, count)
    ratios |= _compare(functions, count, **{name: ("ours", "Model Garden's")})
  if _TIMM.value:
    ratios |= _compare_with_timm(crop_and_flip, count)
  ratios |= _compare(
    *_reading(folder),
    read_over_sequential=("records", "bytes"),
    read_over_tensorflow=("records", "TensorFlow's reader"),
  )
  return ratios | _compare(
    *_batching(folder),
    deterministic_over_free=("in order", "in any order"),
    surviving_over_plain=("in order", "not surviving"),
  )


def _compare(functions, number, prepare=None, **wanted) -> dict[str, float]:
  """Times functions; `wanted` names the two speeds of each ratio."""
  seconds = seconds_side_by_side(
    functions, rounds=_ROUNDS.value, prepare=prepare
  )
  for name, times in seconds.items():
    print(f"{name:>24} {number / statistics.median(times):9,.0f} images/s")
  return {
    name: round(median_ratio(seconds[below], seconds[above]), 3)
    for name, (above, below) in wanted.items()
  }


def _compare_with_timm(crop_and_flip, count: int) -> dict[str, float]:
  ours = randaugment.RandAugment(layers=_LAYERS, magnitude=_MAGNITUDE)
  job = {
    "images": _IMAGES.value,
    "count": count,
    "size": _SIZE,
    "layers": _LAYERS,
    "magnitude": _MAGNITUDE,
  }
  timm = Worker(_TIMM.value, "benchmarks.timm_loader", json.dumps(job))
  print(timm.facts["versions"])
  functions = {
    "crop": _mapped(crop_and_flip, count),
    "timm's crop": lambda: timm("crop"),
    "RandAugment": _mapped(
      lambda i: ours(crop_and_flip(i), tf.stack([1, i])), count
    ),
    "timm's RandAugment": lambda: timm("randaugment"),
  }
  try:
    return _compare(
      functions,
      count,
      crop_over_timm=("crop", "timm's crop"),
      randaugment_over_timm=("RandAugment", "timm's RandAugment"),
    )
  finally:
    timm.close()


def _randaugment(source, count: int):
  """Returns functions that augment what `source` returns for a number."""
  ours = randaugment.RandAugment(layers=_LAYERS, magnitude=_MAGNITUDE)
  theirs = augment.RandAugment(
    num_layers=_LAYERS,
    magnitude=_MAGNITUDE,
    translate_const=100.0,
    cutout_const=40.0,
  )
  return {
    "ours": _mapped(lambda i: ours(source(i), tf.stack([1, i])), count),
    "Model Garden's": _mapped(lambda i: theirs.distort(source(i)), count),
  }


def _reading(folder):
  """Returns functions that read all shards, the records read, and a reset."""
  info = read_split_info(folder, "train")
  buffer = info.num_examples // 4
  shuffle = ShardedShuffle(
    info.files, info.counts, seed=0, shuffle_buffer=buffer
  )
  examples = shuffle.examples(0).batch(_WINDOW).with_options(dataset_options())
  plain = tf.data.TFRecordDataset(list(info.files)).repeat().batch(_WINDOW)
  # Half the buffer is read ahead after a turn; it is read within one as well.
  more = info.num_examples + buffer // 2

  def bytes_of_files():
    for path in info.files:
      with open(path, "rb", buffering=0) as file:
        while file.read(1 << 20):
          continue

  functions = {
    "records": _taking(examples, more // _WINDOW),
    "bytes": bytes_of_files,
    "TensorFlow's reader": _taking(
      plain.with_options(dataset_options()), info.num_examples // _WINDOW
    ),
  }
  return functions, info.num_examples, lambda: jpegs.forget(info.files)


def _batching(folder):
  """Returns functions that read batches from shards, and the image count."""
  transforms = [
    preprocessing.InceptionCrop(image_size=_SIZE),
    preprocessing.Flip(),
  ]
  info = read_split_info(folder, "train")
  loader = ExampleLoader(info.fields, 1, transforms)
  buffer = info.num_examples // 4
  shuffle = ShardedShuffle(
    info.files, info.counts, seed=0, shuffle_buffer=buffer
  )
  ordered, any_order = dataset_options(), dataset_options()
  any_order.deterministic = False

  def load(number, serialized):
    return loader.load_training(serialized, 0, number, number)

  def surviving(examples):
    spec = examples.map(load).element_spec
    return map_skipping_errors(examples, load, spec=spec, batch_size=_BATCH)

  def plain(examples):
    return examples.map(load, parallel_calls()).batch(_BATCH)

  free = (
    tf.data.Dataset.from_tensor_slices(list(info.files))
    .interleave(tf.data.TFRecordDataset, cycle_length=16, num_parallel_calls=16)
    .repeat()
    .shuffle(buffer)
    .enumerate()
  )
  steps = 6 * _COUNT.value // _BATCH  # many more than are prefetched
  functions = {
    name: _taking(batches.prefetch(2).with_options(options), steps)
    for name, batches, options in (
      ("in order", surviving(shuffle.examples(0)), ordered),
      ("in any order", surviving(free), any_order),
      ("not surviving", plain(shuffle.examples(0)), ordered),
    )
  }
  return functions, steps * _BATCH


def _mapped(function, count: int):
  """Returns a function that maps `function` over `count` numbers, in order."""
  numbers = tf.data.Dataset.range(count).repeat()
  mapped = numbers.map(function, parallel_calls(), deterministic=True)
  return _taking(mapped.with_options(dataset_options()), count)


def _taking(dataset: tf.data.Dataset, count: int):
  """Returns a function that takes the next elements of an endless dataset.

  The iterator is kept, so that its start is not measured.
  """
  iterator = iter(dataset)
  return lambda: _take(iterator, tf.constant(count))


@tf.function(reduce_retracing=True)
def _take(iterator, count):
  for _ in tf.range(count):
    next(iterator)


if __name__ == "__main__":
  entry.run(main)
