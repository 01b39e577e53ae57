import pytest

from nfnets_tf.config import complaints
from nfnets_tf.errors import UserError

LISTING = """from __gin__ import dynamic_registration
from nfnets_tf.models import nfnet
from nfnets_tf.scaling import compute

PEAK = 1
compute.TpuV4.utilisation = %PEAK
nfnet.NFNet.activation = @compute.TpuV4()
"""


def test_nearest_names_the_closest_or_nothing():
  names = ["EPOCHS", "PEAK_LR"]
  assert complaints.nearest("EPOCH", names) == "; did you mean 'EPOCHS'?"
  assert complaints.nearest("SOMETHING", names) == "."


def test_no_such_file():
  error = complaints.no_such_file("gin/f8.gin", ["gin/f7.gin"])
  assert "'gin/f8.gin' does not exist; did you mean 'gin/f7.gin'?" in str(error)


def test_of_parse_error_prefers_gins_place_to_what_was_given():
  error = ValueError(
    "No configurable matching 'nfnet.NFNetz'.\n"
    '  In file "gin/a.gin", line 7\n    nfnet.NFNetz.x = 1'
  )
  complaint = complaints.of_parse_error(error, "gin/b.gin", LISTING, [])
  assert str(complaint) == (
    "gin/a.gin, line 7: there is no 'nfnet.NFNetz' to bind; did you mean"
    " 'nfnet.NFNet'?"
  )


def test_of_build_error_keeps_a_users_error_and_explains_others():
  mine = UserError("A sentence.\n  In call to configurable 'X' (<class>)")
  assert str(complaints.of_build_error(mine)) == "A sentence."
  missing = TypeError(
    "tpu() missing 1 required keyword-only argument: 'address'\n"
    "  In call to configurable 'tpu' (<function tpu>)"
  )
  assert '--gin_param="tpu.address = ..."' in str(
    complaints.of_build_error(missing)
  )
  other = complaints.of_build_error(ValueError("odd"))
  assert "ValueError: odd" in str(other)


def test_check_accepts_what_is_whole():
  complaints.check(LISTING, {})


@pytest.mark.parametrize(
  "old, new, words",
  [
    ("PEAK = 1", "PEEK = 1", "PEEK is set, but nothing reads it"),
    ("PEAK = 1\n", "", "PEAK is not set, but compute.TpuV4.utilisation"),
    (".utilisation = %PEAK", ".utilization = %PEAK", "mean 'utilisation'"),
    ("compute.TpuV4.utilisation = %PEAK", "A = %PEAK", "A is set"),
    (
      "PEAK = 1\ncompute.TpuV4.utilisation = %PEAK\n",
      "",
      "compute.TpuV4.utilisation is not bound",
    ),
    ("from nfnets_tf.scaling import compute\n", "", "no gin file imports it"),
  ],
)
def test_check_refuses(old, new, words):
  assert old in LISTING
  with pytest.raises(UserError, match=words):
    complaints.check(LISTING.replace(old, new), {})


def test_axes_of_a_grid_may_have_any_name():
  grid = "from nfnets_tf import config\nconfig.grid.ANYTHING = (1, 2)\n"
  complaints.check(LISTING + grid, {})
  other = grid.replace("grid.ANYTHING", "Launch.ANYTHING")
  with pytest.raises(UserError, match="config.Launch has no .* 'ANYTHING'"):
    complaints.check(LISTING + other, {})
