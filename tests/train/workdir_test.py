import dataclasses
import hashlib
import os

import numpy as np
import pytest
import tensorflow as tf

from nfnets_tf.data.index import SplitIndex
from nfnets_tf.ops.errors import UserError
from nfnets_tf.train.workdir import Workdir, replace_file, weights_sha256


def test_a_result_marks_a_run_as_finished(tmp_path):
  files = Workdir(str(tmp_path))
  assert files.read_result() is None
  files.write_result({"step": 3})
  assert files.read_result() == {"step": 3}


def test_the_configuration_is_written_once(tmp_path):
  files = Workdir(str(tmp_path / "run"))
  files.keep_configuration("A = 1\n")
  files.keep_configuration("A = 2\n")
  with open(files.config) as file:
    assert file.read() == "A = 1\n"


def test_data_that_have_changed_are_refused(tmp_path):
  files = Workdir(str(tmp_path))
  index = SplitIndex(("data/a", "data/b"), (3, 4), 2, ())
  for _ in range(2):
    files.keep_data(train=index, heldout=index)
  for other in (
    dataclasses.replace(index, counts=(3, 5)),
    dataclasses.replace(index, files=("other/a", "other/b")),
  ):
    with pytest.raises(UserError, match="'heldout' data have changed .* 7"):
      files.keep_data(train=index, heldout=other)


def test_a_replaced_file_is_whole_and_leaves_nothing_beside_it(tmp_path):
  path = str(tmp_path / "file")
  replace_file(path, "old")
  replace_file(path, "new")
  with open(path) as file:
    assert file.read() == "new"
  assert os.listdir(tmp_path) == ["file"]


def test_the_digest_is_of_the_bytes_in_variable_order():
  a, b = np.float32([1, 2]), np.float32([[3]])
  digest = weights_sha256([tf.Variable(a), tf.Variable(b)])
  assert digest == hashlib.sha256(a.tobytes() + b.tobytes()).hexdigest()
  assert digest != weights_sha256([tf.Variable(b), tf.Variable(a)])
