import contextlib

import pytest

from nfnets_tf.data.index import SplitIndex
from nfnets_tf.train.delivery import deliver
from nfnets_tf.train.workdir import Workdir


class Trained:
  """A classifier that tells whether its averages are in place."""

  def __init__(self, averages):
    self.averages = averages
    self.in_place = False

  @contextlib.contextmanager
  def averaged(self):
    self.in_place = True
    yield
    self.in_place = False


class Job:
  num_classes = 2
  batch_size = 7

  class heldout_split:
    operations = ("resize",)

  def __init__(self, report=True):
    self.calls = {}
    self.report = self._report if report else None

  def _report(self, model, split, index, directory, **options):
    self.calls["report"] = (directory, options, model.in_place)

  def export(self, model, directory, **options):
    self.calls["export"] = (directory, options, model.in_place)
    return f"{directory}/1"


@pytest.mark.parametrize("averages", [["a"], []])
@pytest.mark.parametrize("names", [("cat", "dog"), ()])
def test_reports_on_the_weights_that_it_exports(averages, names):
  job, index = Job(), SplitIndex(("f",), (1,), 2, names)
  folder = deliver(job, Workdir("run"), Trained(averages), index)
  assert folder == "run/saved_model/1"
  expected = list(names) or ["0", "1"]
  directory, options, in_place = job.calls["report"]
  assert directory == "run/report" and in_place is bool(averages)
  assert options == {"class_names": expected, "batch_size": 7}
  _, options, in_place = job.calls["export"]
  assert options["averaged"] is bool(averages)
  assert options["class_names"] == expected
  assert not in_place  # the export puts them in place itself


def test_without_a_report_it_exports():
  job = Job(report=False)
  deliver(job, Workdir("run"), Trained([]), SplitIndex(("f",), (1,), 2, ()))
  assert list(job.calls) == ["export"]
