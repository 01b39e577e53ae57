from nfnets_tf.config import error_messages
from nfnets_tf.errors import UserError


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
