"""What the input pipeline costs beyond what cannot be saved: ratios of one run.

  python -m benchmarks.input_pipeline --images=FOLDER

The images of a folder, at any depth, are decoded, augmented, written as shards
and read, each beside the plainest thing that does as much. The last line is a
JSON object of ratios of speeds:

  crop_over_decode: random crop, resize to 224, flip; over decoding the same
      crops and nothing else
  randaugment_over_model_garden: four layers at magnitude 10 on images of 224
      pixels; over the Model Garden's
  randaugment_in_pipeline: the same with decode, crop and flip before both
  read_over_sequential: shuffled records of shards; over reading the same files
      one after another. Both from the disk: the system's copies in memory are
      given up before each turn
  deterministic_over_free: shards to batches in our order; over the same stages
      in whatever order threads finish
"""

import json
import os
import statistics
import sys
import tempfile

import tensorflow as tf
from absl import flags
from official.vision.ops import augment

from benchmarks.timing import median_ratio, seconds_side_by_side
from nfnets_tf.data import pipeline, preprocess, randaugment, records, tuning
from nfnets_tf.data.index import read_index
from nfnets_tf.data.order import ShardOrder
from nfnets_tf.data.views import Views

_IMAGES = flags.DEFINE_string("images", None, "Folder of JPEGs.", required=True)
_ROUNDS = flags.DEFINE_integer("rounds", 7, "Times each is measured.")
_COUNT = flags.DEFINE_integer("count", 500, "Images of a measurement.")
_SIZE, _LAYERS, _MAGNITUDE = 224, 4, 10
_SHARDS, _BATCH, _WINDOW = 16, 64, 16


def main() -> None:
  """Prints images a second and, last, the ratios as JSON."""
  flags.FLAGS(sys.argv)
  encoded = _read_images()
  with tempfile.TemporaryDirectory() as folder:
    _write_shards(folder, encoded)
    print(json.dumps(_measure(encoded, folder)))


def _measure(encoded, folder) -> dict[str, float]:
  images, count = tf.constant(encoded), len(encoded)
  ratios = {}

  def compare(names, functions, number):
    seconds = seconds_side_by_side(functions, rounds=_ROUNDS.value)
    for name, taken in seconds.items():
      print(f"{name:>24} {number / statistics.median(taken):9,.0f} images/s")
    ours, other = functions
    ratio = median_ratio(seconds[other], seconds[ours])
    ratios[names] = round(ratio, 3)

  seeds = [tf.constant([0, i], tf.int64) for i in range(count)]
  crop = preprocess.InceptionCrop(image_size=_SIZE)
  boxes = tf.stack([crop.box(x, seed) for x, seed in zip(images, seeds)])

  def decode(i):
    return tf.io.decode_and_crop_jpeg(images[i], boxes[i], channels=3)

  def view(i):
    both = preprocess.compose([crop, preprocess.Flip()])
    return both(images[i], tf.stack([0, i]))

  compare(
    "crop_over_decode",
    {
      "crop, resize, flip": _mapped(view, count),
      "decode": _mapped(decode, count),
    },
    count,
  )
  ready = tf.stack([view(tf.constant(i, tf.int64)) for i in range(count)])
  ours = randaugment.RandAugment(layers=_LAYERS, magnitude=_MAGNITUDE)
  theirs = augment.RandAugment(
    num_layers=_LAYERS,
    magnitude=_MAGNITUDE,
    translate_const=100.0,
    cutout_const=40.0,
  )
  for name, source in (
    ("randaugment_over_model_garden", lambda i: ready[i]),
    ("randaugment_in_pipeline", view),
  ):
    functions = {
      "ours": lambda i, source=source: ours(source(i), tf.stack([1, i])),
      "Model Garden's": lambda i, source=source: theirs.distort(source(i)),
    }
    functions = {key: _mapped(f, count) for key, f in functions.items()}
    compare(name, functions, count)
  compare("read_over_sequential", *_reading(folder))
  compare("deterministic_over_free", *_batching(folder))
  return ratios


def _reading(folder):
  """Returns functions that read all shards, and how many images they hold."""
  index = read_index(folder, "train")
  half = index.num_examples // 2
  order = ShardOrder(index.files, index.counts, seed=0, shuffle_buffer=half)
  examples = order.examples(0).batch(_WINDOW).with_options(tuning.options())
  take = _taking(examples, index.num_examples // _WINDOW)

  def records_of_shards():
    _forget(index.files)
    take()

  def bytes_of_files():
    _forget(index.files)
    for path in index.files:
      with open(path, "rb", buffering=0) as file:
        while file.read(1 << 20):
          continue

  functions = {"records": records_of_shards, "bytes": bytes_of_files}
  return functions, index.num_examples


def _forget(files) -> None:
  for path in files:
    with open(path, "rb") as file:
      os.fsync(file.fileno())
      os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _batching(folder):
  """Returns functions that make batches of shards, and of how many images."""
  operations = [preprocess.InceptionCrop(image_size=_SIZE), preprocess.Flip()]
  split = pipeline.Split(
    directory=folder, split="train", num_classes=1, operations=operations
  )
  index, count = split.index(), _COUNT.value
  buffer = count // 2
  ordered = split.training_batches(
    index,
    host_batch=_BATCH,
    replicas=1,
    start_step=0,
    shuffle_buffer=buffer,
    seed=0,
  )
  views = Views(operations, (), (), num_classes=1)

  def load(number, serialized):
    return views.training(serialized, records.Fields(), 0, number, number)

  calls = tuning.parallel_calls()
  options = tuning.options()
  options.deterministic = False
  free = (
    tf.data.Dataset.from_tensor_slices(list(index.files))
    .interleave(
      tf.data.TFRecordDataset,
      cycle_length=_SHARDS,
      num_parallel_calls=_SHARDS,
      deterministic=False,
    )
    .repeat()
    .shuffle(buffer)
    .enumerate()
    .map(load, calls, deterministic=False)
    .batch(_BATCH)
    .prefetch(2)
    .with_options(options)
  )
  steps = 6 * count // _BATCH  # many more than lie ready
  functions = {
    "in order": _taking(ordered, steps),
    "free": _taking(free, steps),
  }
  return functions, steps * _BATCH


def _mapped(function, count: int):
  """Returns a function that maps `function` over `count` numbers, in order."""
  numbers = tf.data.Dataset.range(count).repeat()
  mapped = numbers.map(function, tuning.parallel_calls(), deterministic=True)
  return _taking(mapped.with_options(tuning.options()), count)


def _taking(dataset: tf.data.Dataset, count: int):
  """Returns a function that takes the next elements of an endless dataset.

  Its iterator lives on: what it takes to start one is not measured.
  """
  iterator = iter(dataset)
  return lambda: _take(iterator, tf.constant(count))


@tf.function(reduce_retracing=True)
def _take(iterator, count):
  for _ in tf.range(count):
    next(iterator)


def _read_images() -> list[bytes]:
  paths = (
    os.path.join(folder, name)
    for folder, _, names in sorted(os.walk(_IMAGES.value))
    for name in sorted(names)
    if name.lower().endswith((".jpg", ".jpeg"))
  )
  encoded = []
  for path in paths:
    if len(encoded) == _COUNT.value:
      break
    with open(path, "rb") as file:
      encoded.append(file.read())
  if len(encoded) < _BATCH:
    sys.exit(
      f"{_IMAGES.value!r} holds {len(encoded)} JPEGs; {_BATCH} are needed."
    )
  return encoded


def _write_shards(folder: str, encoded) -> None:
  entries = []
  for shard in range(_SHARDS):
    examples = (
      (0, records.Record(x, 0, "", "", "jpeg").serialize())
      for x in encoded[shard % 2 :: 2]
    )
    name = records.shard_name("train", shard, _SHARDS)
    entries.append(records.write_shard(os.path.join(folder, name), examples))
  split = records.describe_split(entries, 1)
  records.write_index(
    folder, {"format": 2, "class_names": ["x"], "splits": {"train": split}}
  )


if __name__ == "__main__":
  main()
