"""The notebook, executed on a folder of its own; with its outputs on a page."""

import base64
import io
import os
import pathlib
import sys

import nbclient
import nbformat
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

ROOT = pathlib.Path(__file__).parents[2]
NOTEBOOK = ROOT / "examples" / "finetune.ipynb"


def execute(monkeypatch, folder, **values):
  """Returns (printed text, pictures) with other values in the first cell."""
  monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *sys.path]))
  notebook = nbformat.read(NOTEBOOK, as_version=4)
  settings = next(c for c in notebook.cells if c.cell_type == "code")
  settings.source += "".join(f"\n{k} = {v!r}" for k, v in values.items())
  nbclient.NotebookClient(
    notebook,
    timeout=600,
    kernel_name="python3",
    resources={"metadata": {"path": str(folder)}},
  ).execute()
  return outputs_of(notebook)


def outputs_of(notebook):
  text, pictures = "", []
  for cell in notebook.cells:
    for output in cell.get("outputs", []):
      text += output.get("text", "")
      if png := output.get("data", {}).get("image/png"):
        pictures.append(Image.open(io.BytesIO(base64.b64decode(png))))
  return text, pictures


def test_it_trains_on_a_folder_of_ones_own(tmp_path, monkeypatch):
  """Two classes that differ in color, with names that need no care."""
  r = np.random.default_rng(0)
  for channel, name in enumerate(("$5_$10", "a b")):
    (tmp_path / "photos" / name).mkdir(parents=True)
    for i in range(30):
      image = r.integers(0, 60, [20, 28, 3]).astype(np.uint8)
      image[..., channel] += 180
      png = tf.io.encode_png(image).numpy()
      (tmp_path / "photos" / name / f"{i}.png").write_bytes(png)
  text, pictures = execute(
    monkeypatch,
    tmp_path,
    FOLDER=str(tmp_path / "photos"),
    IMAGE_SIZE=16,
    BATCH_SIZE=8,
    EPOCHS=4,
  )
  assert "top-1 100.00% of 12 images" in text
  assert len(pictures) == 4  # images, curves, confusion, mistakes
  assert (tmp_path / "finetuned.keras").exists()


@pytest.mark.soak
def test_it_learns_the_digits(tmp_path, monkeypatch):
  text, _ = execute(monkeypatch, tmp_path)
  percent = float(text.split("top-1 ")[-1].split("%")[0])
  assert percent > 96


def test_it_is_kept_with_its_outputs():
  text, pictures = outputs_of(nbformat.read(NOTEBOOK, as_version=4))
  assert "held out: top-1" in text and "Traceback" not in text
  assert len(pictures) == 4
  assert all(np.asarray(picture.convert("L")).std() > 5 for picture in pictures)
  assert NOTEBOOK.stat().st_size < 300_000
