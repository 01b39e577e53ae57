"""The bindings of docs/data.md, as printed, for shards that need them."""

import io
import pathlib
import re

import numpy as np
import pytest
import tensorflow as tf

from nfnets_tf.config import Configuration
from nfnets_tf.errors import UserError
from nfnets_tf.jobs.job import RunContext
from tests.support.datasets import serialized_example
from tests.support.launcher import ROOT

TABLE = re.search(
  r"\| other shards .*?(?=\n\n)", (ROOT / "docs/data.md").read_text(), re.DOTALL
)[0]
ROWS = {
  line.split("|")[1].strip(): re.findall(r"`([\w./]+\.\w+ = [^`]+)`", line)
  for line in TABLE.splitlines()[2:]
}
TO_CHECK = re.search(
  r"`(check_shards\.\w+\.splits = [^`]+)`", (ROOT / "docs/data.md").read_text()
)[1]


def examples(row: str, label: int):
  image = np.full([8, 8, 3], 40 * label, np.uint8)
  png = tf.io.encode_png(image).numpy()
  if row.startswith("ImageNet"):
    return {"image/encoded": png, "image/class/label": label + 1}
  if row == "uint8 arrays":
    size = {"image/height": 8, "image/width": 8}
    encoded = {"image/encoded": image.tobytes()}
    return {**encoded, "image/class/label": label, **size}
  return {"image_raw": png, "target": label, "file": b"a.png"}


def write_shards(folder: pathlib.Path, row: str) -> str:
  folder.mkdir(exist_ok=True)
  heldout = "validation" if row.startswith("ImageNet") else "heldout"
  for split in ("train", heldout):
    for shard in range(2):
      path = folder / f"{split}-{shard:05d}-of-00002"
      with tf.io.TFRecordWriter(str(path)) as writer:
        for i in range(6):
          writer.write(serialized_example(**examples(row, i % 3)))
  return str(folder)


def build(file, directory, bindings):
  params = [f"DATA_DIR = {directory!r}", *bindings]
  return Configuration([f"gin/{file}.gin"], params).build_job()


def test_table_has_bindings():
  assert len(ROWS) == 4 and sum(map(bool, ROWS.values())) == 3


@pytest.mark.parametrize("row", [row for row in ROWS if ROWS[row]])
def test_documented_bindings_read_such_shards(row, tmp_path):
  directory = write_shards(tmp_path, row)
  data = build("finetune_shards", directory, ROWS[row]).data
  assert data.num_classes == 3 and data.num_examples == 12
  split = data.heldout_split
  assert split.read_info().fields == data.train_split.read_info().fields
  batches = split.evaluation_batches(
    split.read_info(), host_batch=12, replicas=1
  )
  ((images, labels, weights),) = batches.as_numpy_iterator()
  assert weights.all() and sorted(labels) == [0] * 4 + [1] * 4 + [2] * 4
  assert (images[..., 0].max((1, 2)) == 40 * labels).all()


@pytest.mark.parametrize("row", [row for row in ROWS if ROWS[row]])
def test_documented_bindings_check_such_shards(row, tmp_path):
  directory = write_shards(tmp_path / "shards", row)
  scoped = [x for x in ROWS[row] if not x.startswith("heldout/")]
  if scoped != ROWS[row]:
    scoped.append(TO_CHECK)
  job = build("check_shards", directory, scoped)
  context = RunContext(
    workdir=str(tmp_path / "run"), config_text="", terminal=io.StringIO()
  )
  assert "24 of 24 records" in job.run(context)


def test_other_shards_without_the_bindings_are_noticed(tmp_path, caplog):
  directory = write_shards(tmp_path / "garden", "ImageNet")
  assert build("finetune_shards", directory, []).data.num_classes == 4
  assert "tfrecords.Fields.first_label = 1" in caplog.text
  directory = write_shards(tmp_path / "other", "other names")
  with pytest.raises(UserError, match="target .integer.*Fields.label"):
    build("finetune_shards", directory, [])
