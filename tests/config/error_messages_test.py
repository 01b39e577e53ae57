import shlex

import pytest

from nfnets_tf.config import error_messages
from nfnets_tf.config.bindings import Bindings
from nfnets_tf.errors import UserError

# What people write, and what gin wants; None where no remedy is certain.
WRONG_AND_RIGHT = [
  ("VARIANT = nano", "VARIANT = 'nano'"),
  ("VARIANT=F3+", "VARIANT = 'F3+'"),
  ("VARIANT = nano  # small", "VARIANT = 'nano'"),
  ("DATA_DIR = /data/x", "DATA_DIR = '/data/x'"),
  ("DATA_DIR = ~/photos", "DATA_DIR = '~/photos'"),
  ("DATA_DIR = gs://bucket/x", "DATA_DIR = 'gs://bucket/x'"),
  ("DATA_DIR = my photos", "DATA_DIR = 'my photos'"),
  ("DATA_DIR = C:\\x", "DATA_DIR = r'C:\\x'"),
  ("DATA_DIR = 'C:\\Users\\x'", "DATA_DIR = r'C:\\Users\\x'"),
  ("DATA_DIR = $HOME/x", "DATA_DIR = '~/x'"),
  ("DATA_DIR = $DATA/x", None),
  ("ADDRESS = data-1:5000", "ADDRESS = 'data-1:5000'"),
  ("A = true", "A = True"),
  ("A = FALSE", "A = False"),
  ("A = null", "A = None"),
  ("A = none", "A = None"),
  ("A = nan", None),
  ("A = -inf", None),
  ("A = 1e-4f", "A = 1e-4"),
  ("A = 10k", "A = 10_000"),
  ("A = 1,000", "A = 1_000"),
  ("A = 0,5", None),
  ("A = 50%", "A = 0.5"),
  ("A = 2**3", "A = 8"),
  ("A = 9**9**9**9", None),
  ("A = 3 + 4", "A = 7"),
  ("A = %MOST * 2", None),
  ("A = 1e\u22123", "A = 1e-3"),
  ("A \uff1d 3", "A = 3"),
  ("A\xa0= 3", "A = 3"),
  ("A = +3", "A = 3"),
  ("A = 3 4", None),
  ("A = [a, 'b', true, 3]", "A = ['a', 'b', True, 3]"),
  ("A = {'x': y}", "A = {'x': 'y'}"),
  ("A = [1, 2", "A = [1, 2]"),
  ("A = “nano”", 'A = "nano"'),
  ("A = ‘nano’", "A = 'nano'"),
  ("A = ”nano’", "A = 'nano'"),
  ("A = 'nano", "A = 'nano'"),
  ("A = 'nano\"", "A = 'nano'"),
  ("A = 'it's'", 'A = "it\'s"'),
  ("VARIANT: 'nano'", "VARIANT = 'nano'"),
  ("VARIANT: nano", "VARIANT = 'nano'"),
  ("VARIANT 'nano'", "VARIANT = 'nano'"),
  ("sgd.SGD.momentum: 0.9", "sgd.SGD.momentum = 0.9"),
  ("VARIANT == 'nano'", "VARIANT = 'nano'"),
  ("VARIANT := 'nano'", "VARIANT = 'nano'"),
  ("EPOCHS += 1", None),
  ("--VARIANT='nano'", "VARIANT = 'nano'"),
  ("--VARIANT=nano", "VARIANT = 'nano'"),
  ("export VARIANT=nano", "VARIANT = 'nano'"),
  ("VARIANT = 'nano',", "VARIANT = 'nano'"),
  ("VARIANT = 'nano';", "VARIANT = 'nano'"),
  ("VARIANT = 'nano' // small", "VARIANT = 'nano'"),
  ("VARIANT = 'nano', EPOCHS = 3", "VARIANT = 'nano'"),
  ("EPOCHS = MOST", "EPOCHS = %MOST"),
  ("STRATEGY = distribution.auto", "STRATEGY = @distribution.auto"),
  ("A = schedules.warmup_cosine()", "A = @schedules.warmup_cosine()"),
  ("A = @sgd.SGD(", "A = @sgd.SGD()"),
  ("VARIANT =", "VARIANT = ..."),
  ("VARIANT", "VARIANT = ..."),
  ("include gin/quickstart.gin", "include 'gin/quickstart.gin'"),
  ("import my-ops", None),
  ("A = lambda: 3", None),
  ("A = f'x'", None),
]
BEFORE = "from nfnets_tf.train import distribution\nMOST = 3\n"


def refusal(text, source):
  bindings = Bindings()
  bindings.read_text(BEFORE, "before.gin")
  with pytest.raises(UserError) as error:
    bindings.read_text(text, source)
  assert "object at 0x" not in str(error.value)
  return str(error.value)


@pytest.mark.parametrize("wrong, right", WRONG_AND_RIGHT, ids=repr)
def test_a_statement_is_shown_as_it_should_be(wrong, right):
  flag = f"--gin_param={wrong!r}"
  for source, text in ((flag, wrong), ("a.gin", f"EPOCHS = 1\n\n{wrong}\n")):
    message = refusal(text, source)
    place = flag if source == flag else "a.gin, line 3"
    assert message.startswith(f"{place}: gin cannot parse this"), message
    if right is None:
      assert "; expected NAME = value" in message and "write" not in message
      continue
    remedy = message.partition("; write ")[2]
    if source == flag:  # as a shell reads it
      (argument,) = shlex.split(remedy)
      remedy = argument.partition("--gin_param=")[2]
    assert remedy == right, message
    if not right.endswith("..."):
      Bindings().read_text(remedy, source)


@pytest.mark.parametrize(
  "text",
  ["sgd.SGD:\n  momentum = 0.9\n    nesterov = False\n", "A = (1,\nB = 2\n"],
)
def test_a_line_that_is_right_by_itself_is_not_changed(text):
  message = refusal(text, "a.gin")
  assert "by itself it is right, so a bracket is open above it, or" in message
  assert message.endswith(f"; write {text.splitlines()[-1].strip()}")


def test_a_string_without_quotes_is_told_of_the_shell():
  flag = refusal("VARIANT = nano", "--gin_param='VARIANT = nano'")
  assert flag == (
    "--gin_param='VARIANT = nano': gin cannot parse this: a string wants"
    " quotes, and others around them for the shell; write"
    " --gin_param=\"VARIANT = 'nano'\""
  )
  block = "sgd.SGD:\n  momentum = 0.9\n  name = big\n"
  assert refusal(block, "a.gin") == (
    "a.gin, line 3: gin cannot parse this 'name = big': a string wants quotes;"
    " write name = 'big'"
  )
  several = refusal("A = [\n  1,\n  b,\n]\n", "a.gin")
  assert several.startswith("a.gin, line ") and "'string'" in several


def test_nearest_names_the_closest_or_nothing():
  names = ["EPOCHS", "PEAK_LR"]
  assert error_messages.nearest("EPOCH", names) == "; did you mean 'EPOCHS'?"
  assert error_messages.nearest("SOMETHING", names) == "."


def test_place_is_a_file_with_a_line_or_a_flag():
  assert error_messages.describe_place("a.gin", 3) == "a.gin, line 3"
  flag = "--gin_param='A = 1'"
  assert error_messages.describe_place(flag, 1) == flag


def test_build_errors_keep_user_errors_and_explain_others():
  explain = error_messages.explain_build_error
  user_error = UserError("A sentence.\n  In call to configurable 'X' (<class>)")
  assert str(explain(user_error)) == "A sentence."
  missing = TypeError(
    "tpu() missing 1 required keyword-only argument: 'address'\n"
    "  In call to configurable 'tpu' (<function tpu>)"
  )
  assert '--gin_param="tpu.address = ..."' in str(explain(missing))
  assert "ValueError: odd" in str(explain(ValueError("odd")))


def test_many_changes_are_counted():
  changes = [(f"N{i}", None, "1") for i in range(7)]
  text = error_messages.describe_changes(changes)
  assert text.startswith("N0 was not set, is 1; N1") and "; and 2 more" in text
  removed = error_messages.describe_changes([("A", "1", None)])
  assert removed == "A was 1, is not set"
