import hashlib
import os

import pytest
import tensorflow as tf

from nfnets_tf.data.files import file_sha256, read_json, record_spans
from nfnets_tf.ops.errors import UserError


def test_the_hash_of_all_bytes(tmp_path):
  content = os.urandom(10_000_000)
  (tmp_path / "a").write_bytes(content)
  assert file_sha256(str(tmp_path / "a")) == hashlib.sha256(content).hexdigest()


def test_json_objects_alone_are_read(tmp_path):
  (tmp_path / "a").write_text('{"b": [1]}')
  assert read_json(str(tmp_path / "a")) == {"b": [1]}
  for text, message in (("{", "no JSON file"), ("[]", "holds list, not an")):
    (tmp_path / "a").write_text(text)
    with pytest.raises(UserError, match=f"a' .*{message}.*restore it"):
      read_json(str(tmp_path / "a"))


def test_where_the_records_of_a_file_lie(tmp_path):
  path, parts = str(tmp_path / "a"), [b"one", b"", b"three" * 100]
  with tf.io.TFRecordWriter(path) as writer:
    for part in parts:
      writer.write(part)
  content = (tmp_path / "a").read_bytes()
  spans = list(record_spans(path))
  assert [content[begin : begin + size] for begin, size in spans] == parts
