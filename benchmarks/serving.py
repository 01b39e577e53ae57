"""Images per second of SavedModels on this machine's CPU, side by side.

  python -m benchmarks.serving --timm=PYTHON

Compares an NFNet as trained with the same network folded, in float32 and
bfloat16, both loaded from SavedModels; and with timm's dm_nfnet of that size in
PyTorch, as created and in its faster layout, channels_last. PYTHON is an
interpreter with timm; without it there is no such comparison. Ours take uint8
images and normalize them; timm's take normalized images. Weights are random,
which does not affect speed. The last line is a JSON object of time ratios;
above 1 the folded network is faster. `over_timm_float32` is the smaller ratio
of the two batch sizes.
"""

import functools
import json
import os
import statistics
import tempfile
import time

import tensorflow as tf
from absl import flags

from benchmarks import entry
from benchmarks.lockstep import Worker
from benchmarks.timing import median_ratio, noise, seconds_side_by_side
from nfnets_tf.models.nfnet import NFNet
from nfnets_tf.serving.export import export_saved_model
from nfnets_tf.train.classifier import Classifier

_VARIANT = flags.DEFINE_string("variant", "F0", "Size of the network.")
_IMAGE_SIZE = flags.DEFINE_integer("image_size", 256, "Pixels of a side.")
_ROUNDS = flags.DEFINE_integer("rounds", 12, "Calls that are timed.")
_TIMM = flags.DEFINE_string("timm", None, "Interpreter that has timm.")

BATCHES = (1, 8)
DTYPES = ("float32", "bfloat16")
LAYOUTS = ("contiguous_format", "channels_last")
_FORMS = {
  "unfolded": {"fold": False},
  "folded float32": {},
  "folded bfloat16": {"dtype": "bfloat16"},
}


def main() -> None:
  """Prints seconds and, last, the ratios as JSON."""
  with tempfile.TemporaryDirectory() as folder:
    served = _export(folder)
  peer = _start_timm() if _TIMM.value else None
  timed = {}
  for batch in BATCHES:
    images = noise(batch, _IMAGE_SIZE.value)
    calls = {name: _call(module, images) for name, module in served.items()}
    if peer:
      calls.update(_timm_calls(peer, batch))
    # A pause, so that no runtime's idle threads spin into another's turn.
    timed[batch] = seconds_side_by_side(
      calls, rounds=_ROUNDS.value, prepare=lambda: time.sleep(0.1)
    )
    for name, seconds in timed[batch].items():
      print(f"batch {batch}  {name:<32} {_milliseconds(seconds)}", flush=True)
  if peer:
    print(f"TensorFlow {tf.__version__}, {peer.facts['versions']}")
    peer.close()
  ratios = _ratios(timed)
  print(json.dumps({name: round(value, 2) for name, value in ratios.items()}))


def _export(folder: str) -> dict:
  network = NFNet(_VARIANT.value, 1000, skip_gain=0.5)
  model = Classifier(network, ema_decay=None)
  names = [str(i) for i in range(1000)]
  served = {}
  for name, options in _FORMS.items():
    path = os.path.join(folder, name.replace(" ", "_"))
    export_saved_model(model, path, class_names=names, **options)
    served[name] = tf.saved_model.load(path)
  return served


def _call(module, images):
  signature, images = module.signatures["serving_uint8"], tf.constant(images)
  return lambda: signature(images=images)["logits"].numpy()


def _start_timm() -> Worker:
  job = {
    "variant": _VARIANT.value,
    "size": _IMAGE_SIZE.value,
    "batches": BATCHES,
    "dtypes": DTYPES,
    "layouts": LAYOUTS,
  }
  return Worker(_TIMM.value, "benchmarks.timm_serving", json.dumps(job))


def _timm_calls(peer: Worker, batch: int) -> dict:
  return {
    f"timm {dtype} {layout}": functools.partial(
      peer, f"{batch} {dtype} {layout}"
    )
    for dtype in DTYPES
    for layout in LAYOUTS
  }


def _milliseconds(seconds) -> str:
  middle = statistics.median(seconds) * 1e3
  return f"{middle:8.1f} ms ({min(seconds) * 1e3:.1f}-{max(seconds) * 1e3:.1f})"


def _ratios(timed: dict) -> dict[str, float]:
  ratios = {
    f"folded_over_unfolded_b{batch}": median_ratio(
      seconds["unfolded"], seconds["folded float32"]
    )
    for batch, seconds in timed.items()
  }
  if not _TIMM.value:
    return ratios
  for dtype in DTYPES:
    for layout, suffix in zip(LAYOUTS, ("", "_channels_last")):
      name = f"over_timm_{dtype}{suffix}"
      each = {
        f"{name}_b{batch}": median_ratio(
          seconds[f"timm {dtype} {layout}"], seconds[f"folded {dtype}"]
        )
        for batch, seconds in timed.items()
      }
      ratios.update({name: min(each.values()), **each})
  return ratios


if __name__ == "__main__":
  entry.run(main)
