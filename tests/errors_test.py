import pytest
import tensorflow as tf

from nfnets_tf.errors import (
  UserError,
  plain_message,
  require_fraction,
  require_int,
)


def test_keras_users_may_catch_it_as_a_value_error():
  with pytest.raises(ValueError, match="too many"):
    raise UserError("too many")


def test_numbers_that_cannot_be_used():
  require_fraction("a.b", 0)
  require_fraction("a.b", 1.0)
  for value in (-0.1, 1.1, None, "1"):
    with pytest.raises(UserError, match=r"a.b = .* a number from 0 to 1"):
      require_fraction("a.b", value)
  require_int("a.b", 3, 3)
  for value in (2, 3.0, None):
    with pytest.raises(UserError, match=r"a.b = .* an integer >= 3"):
      require_int("a.b", value, 3)


def test_messages_say_nothing_of_nodes():
  with pytest.raises(tf.errors.InvalidArgumentError) as info:
    tf.io.decode_png(b"text")
  message = plain_message(info.value)
  assert "{{" not in message and "Op:" not in message and len(message) > 10
  assert plain_message(tf.errors.OpError(None, None, "", 3)) == "OpError"


@pytest.mark.parametrize(
  "error, message",
  [
    (OSError(28, "No space left on device"), "No space left on device"),
    (TimeoutError(), "TimeoutError"),
    (ValueError("one\ntwo"), "one"),
    (
      tf.errors.NotFoundError(
        None,
        None,
        "Graph execution error:\n\nDetected at node IteratorGetNext defined at"
        ' (most recent call last):\n  File "x.py", line 3, in f\n\n'
        "/data/a.tfrecord; No such file or directory\n\t [[{{node x}}]]",
      ),
      "/data/a.tfrecord; No such file or directory",
    ),
  ],
)
def test_of_many_lines_the_one_that_says_what_happened(error, message):
  assert plain_message(error) == message
