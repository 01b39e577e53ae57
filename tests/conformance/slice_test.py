"""One process trains on the hosts of a slice, an input pipeline on each.

The hosts are TensorFlow's servers on this machine; docs/reliability.md says
what that does not show.
"""

import dataclasses
import os
import re
import signal

import pytest

from tests.support.datasets import png_record, write_dataset
from tests.support.launcher import (
  TINY,
  checkpoint_steps,
  checkpoint_tensors,
  wait_until,
)
from tests.support.pretended_slice import hosts

RUN = [
  *TINY,
  "--gin_param=run_config.DataConfig.prepare = None",
  "--gin_param=run_config.DataConfig.max_invalid_fraction = 0.2",
  "--gin_param=NUM_CLASSES = 4",
  "--gin_param=NUM_EXAMPLES = 48",
  "--gin_param=BATCH_SIZE = 8",
]
# Three batches of evaluation, of which host 0 reads 0 to 11 and host 1 the
# rest: each has an invalid record at its second place.
HELDOUT, INVALID_HELDOUT = 20, (1, 13)
INVALID_TRAIN = (5, 29, 30)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  """Binding of a folder of shards with invalid records."""
  directory = tmp_path_factory.mktemp("slice") / "data"

  def records(count, invalid):
    return [
      dataclasses.replace(png_record(i % 4, i), encoded=b"no image")
      if i in invalid
      else png_record(i % 4, i)
      for i in range(count)
    ]

  write_dataset(
    directory,
    {
      "train": records(48, INVALID_TRAIN),
      "heldout": records(HELDOUT, INVALID_HELDOUT),
    },
    num_shards={"train": 6, "heldout": 1},
    class_names=["a", "b", "c", "d"],
  )
  return f"--gin_param=DATA_DIR = {str(directory)!r}"


def numbers(record):
  return {k: v for k, v in record.items() if isinstance(v, (int, float))}


def state(workdir):
  """Returns weights, averages and momentum of the newest checkpoint."""
  return {
    name: tensor
    for name, tensor in checkpoint_tensors(workdir).items()
    if name.startswith(("parameters/", "averages/", "optimizer/"))
  }


def assert_same_run(got, want):
  """Compares logs and states."""
  (got_log, got_tensors), (want_log, want_tensors) = got, want
  assert len(got_log) == len(want_log) >= 3
  for a, b in zip(got_log, want_log):
    assert numbers(a) == pytest.approx(numbers(b), rel=1e-4, abs=1e-6)
  assert got_tensors.keys() == want_tensors.keys()
  for name, tensor in want_tensors.items():
    assert got_tensors[name] == pytest.approx(tensor, abs=1e-5), name


def test_each_host_makes_its_own_part_of_every_batch(
  launcher, data, logged, tmp_path
):
  """As one process makes whole ones; invalid records count on both hosts."""

  def run(name, *flags):
    workdir = tmp_path / name
    done = launcher.launch(
      *RUN,
      "--gin_param=EPOCHS = 1",  # 6 steps
      data,
      f"--workdir={workdir}",
      *flags,
      folder=tmp_path / "out",
    )
    assert not done.returncode, done.stderr
    counts = dict(
      re.findall(
        r"of the '(\w+)' split, by cause: (\d+) image not", done.stderr
      )
    )
    assert int(counts["heldout"]) == len(INVALID_HELDOUT)
    assert int(counts["train"]) >= len(INVALID_TRAIN)  # some are prefetched
    return logged(workdir), state(workdir)

  streams = "--gin_param=run_config.DataConfig.num_data_streams = 2"
  with hosts() as slice_hosts:
    together = run("slice", *slice_hosts.flags)
  assert_same_run(together, run("alone", streams))


@pytest.mark.soak
def test_a_slice_is_preempted_loses_hosts_and_resumes(
  launcher, data, logged, tmp_path
):
  with hosts() as slice_hosts:
    arguments = [
      *RUN,
      "--gin_param=EPOCHS = 10",  # 60 steps, of which 4 are between checkpoints
      "--gin_param=run_config.Schedule.evaluate_every = 20",
      data,
      *slice_hosts.flags,
      "--gin_param=train.TrainJob.export = @export.Exporter()",
      "--gin_param=export.Exporter.fold = False",  # the network is no NFNet
    ]

    def start(name):
      screen = tmp_path / f"{name}.screen"
      workdir = tmp_path / name
      before = checkpoint_steps(workdir)[-1:] or [0]
      pid = launcher.start(*arguments, f"--workdir={workdir}", stdout=screen)
      return pid, lambda: checkpoint_steps(workdir)[-1:] > before

    start("whole")
    assert launcher.wait() == 0
    pid, progressed = start("disturbed")
    wait_until(progressed, pid)
    os.kill(pid, signal.SIGTERM)
    assert launcher.wait() == 143
    for victim in (1, 0):
      pid, progressed = start("disturbed")
      wait_until(progressed, pid)
      os.kill(slice_hosts.pids[victim], signal.SIGKILL)
      assert launcher.wait() == 1
      screen = (tmp_path / "disturbed.screen").read_text()
      (sentence,) = (x for x in screen.splitlines() if "of the slice is" in x)
      assert "rerun the same command" in sentence
      (tmp_path / "disturbed.screen").unlink()
      slice_hosts.restart(victim)
    start("disturbed")
    assert launcher.wait() == 0
  assert list((tmp_path / "disturbed").rglob("saved_model.pb"))
  # Not bit for bit: last bits of a gradient differed, dozens of steps later.
  disturbed, whole = (
    (logged(tmp_path / name), state(tmp_path / name))
    for name in ("disturbed", "whole")
  )
  assert_same_run(disturbed, whole)
