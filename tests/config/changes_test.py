import logging

import pytest

from nfnets_tf.config import Configuration, changes
from nfnets_tf.errors import UserError

FILES = ["gin/quickstart.gin", "gin/overlays/smoke.gin", "gin/sweeps/base.gin"]
TWO = "config.grid.EPOCHS = (1, 2)"
BEFORE = {"A": "1", "B": "2", "x.C.d": "@e.f"}


@pytest.fixture
def check(tmp_path):
  """Checks what a configuration is now against what it was."""
  path = tmp_path / "config.gin"

  def check_kept(now, before=BEFORE, free=frozenset(), may="['B']"):
    listing = [f"{left} = {right}" for left, right in before.items()]
    path.write_text("\n".join(listing))
    changes.check_kept(
      str(path), {"may": may, **now}, may_change="may", free=set(free)
    )

  return check_kept


def test_where_nothing_was_everything_may_be(tmp_path):
  changes.check_kept(
    str(tmp_path / "none"), {"A": "1"}, may_change="may", free=set()
  )


def test_what_is_the_same_is_kept(check):
  check(BEFORE)


@pytest.mark.parametrize(
  "now, told",
  [
    ({**BEFORE, "A": "3"}, "A was 1, is 3"),
    ({**BEFORE, "E": "4"}, "E was not set, is 4"),
    ({"A": "1", "B": "2"}, "x.C.d was @e.f, is not set"),
    ({**BEFORE, "A": "3", "E": "4"}, "A was 1, is 3; E was not set, is 4"),
  ],
)
def test_what_differs_is_refused_with_what_would_allow_it(
  check, now, told, tmp_path
):
  with pytest.raises(UserError) as error:
    check(now)
  names = sorted({"B"} | {part.split(" ")[0] for part in told.split("; ")})
  assert str(error.value) == (
    "the work directory was made with another configuration"
    f" ({tmp_path / 'config.gin'}: {told}); give another --workdir, or the old"
    f' values, or allow it by --gin_param="may = {names}".'
  )
  check(now, may=repr(names))


def test_what_is_free_may_differ_unnamed(check, caplog, monkeypatch):
  monkeypatch.setattr(logging.getLogger("nfnets_tf"), "propagate", True)
  caplog.set_level(logging.INFO, "nfnets_tf")
  check({"A": "3", "B": "2", "E": "4"}, free={"A", "E", "x.C.d"})
  assert not caplog.messages
  check({**BEFORE, "B": "3"})
  assert caplog.messages == [
    "Going on with another configuration: B was 2, is 3."
  ]
  with pytest.raises(UserError, match="A was 1, is 3"):
    check({**BEFORE, "A": "3"}, free={"B", "E"})


def test_many_differences_are_counted(check):
  with pytest.raises(UserError, match="; and 2 more"):
    check({**BEFORE, **{f"N{i}": "1" for i in range(7)}})


@pytest.mark.parametrize("may", ["'A'", "3", "[3]", "%A", "(1"])
def test_what_may_change_is_a_list_of_names(check, may):
  with pytest.raises(UserError, match="is no list of names"):
    check(BEFORE, may=may)
  with pytest.raises(UserError, match="names 'AA', which nothing binds"):
    check(BEFORE, may="['AA']")


@pytest.fixture
def go_on(tmp_path):
  """Begins a sweep in a folder; returns what goes on with other bindings."""
  path = tmp_path / "config.gin"

  def begin(*params):
    path.write_text(Configuration(FILES, params).text)

    def check(*now):
      Configuration(FILES, now).check_workdir(str(path))

    return check

  return begin


@pytest.mark.parametrize(
  "now",
  [
    ["config.grid.EPOCHS = (1, 2, 4)"],
    ["config.grid.EPOCHS = (0.5, 1, 2)"],  # another first point
    ["config.grid.EPOCHS = (2,)"],
    [TWO, "config.grid.SEED = (0, 1)"],
    [TWO, "sweep.Sweep.lease_seconds = 9", "sweep.Sweep.price = 2"],
    [TWO, "sweep.Sweep.engine = @engines.Ray()"],
    [TWO, "engines.LocalProcesses.at_once = 2"],
    [TWO, "sweep.Sweep.tuning = @tuning.GridSearch()"],
    [TWO, "sweep.Sweep.tuning = @tuning.GridSearch()", "PEAK_LR = 0.3"],
  ],
)
def test_a_sweep_may_grow_and_change_hands(go_on, now):
  go_on(TWO)(*now)


@pytest.mark.parametrize(
  "now, told",
  [
    (["BATCH_SIZE = 30"], "BATCH_SIZE was 32, is 30"),
    (["SEED = 5"], "SEED was 0, is 5"),
    (["PEAK_LR = 0.3"], "PEAK_LR was .*, is 0.3"),
    (["config.grid.SEED = (0, 1)", "BATCH_SIZE = 30"], "BATCH_SIZE was 32"),
  ],
)
def test_what_all_points_share_may_not_change(go_on, now, told):
  with pytest.raises(UserError, match=told):
    go_on(TWO)(TWO, *now)


def test_a_point_keeps_to_its_own_configuration(tmp_path):
  path = tmp_path / "config.gin"
  sweep = Configuration(FILES, [TWO])
  path.write_text(sweep.at({"EPOCHS": 2}).text)
  grown = Configuration(FILES, ["config.grid.EPOCHS = (0.5, 2, 4)"])
  grown.at({"EPOCHS": 2}).check_workdir(str(path))
  with pytest.raises(UserError, match="EPOCHS was 2, is 4"):
    grown.at({"EPOCHS": 4}).check_workdir(str(path))
