"""What one process knows, and what several agree upon where they meet."""

import json
import threading
import types
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow as tf

from nfnets_tf.errors import UserError
from nfnets_tf.train.workers import Workers

LAYOUTS = [
  {"worker": ["a:1", "b:2"]},
  {"worker": ["a:1", "b:2", "c:3"]},
  {"chief": ["c:3"], "worker": ["a:1", "b:2"]},
]


@pytest.mark.parametrize(
  "make",
  [
    tf.distribute.get_strategy,
    lambda: tf.distribute.OneDeviceStrategy("CPU:0"),
    lambda: tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]),
    tf.distribute.MultiWorkerMirroredStrategy,
  ],
)
def test_one_process_agrees_with_itself(make, monkeypatch):
  monkeypatch.delenv("TF_CONFIG", raising=False)
  workers = Workers(make())
  assert (workers.count, workers.index, workers.chief) == (1, 0, True)
  assert workers.gathered(7) == [7]
  assert workers.any(True) is True and workers.any(False) is False
  workers.meet()
  workers.check_same(3, "runs/x")


class Meeting:
  """Sums the rows of all replicas when every worker has brought its own."""

  def __init__(self, workers):
    self.rows, self.total = [], None
    self.barrier = threading.Barrier(workers, self._add, timeout=60)

  def _add(self):
    self.total = np.sum(self.rows, axis=0)
    self.rows = []

  def sum(self, rows):
    self.rows += rows
    self.barrier.wait()
    return self.total


class OfOneWorker(tf.distribute.MultiWorkerMirroredStrategy):
  """Has a worker's place, some replicas, and a `Meeting` for collectives."""

  cluster_resolver = num_replicas_in_sync = None

  def __init__(self, number, count, replicas, meeting):
    self.cluster_resolver = (
      tf.distribute.cluster_resolver.TFConfigClusterResolver()
    )
    self.num_replicas_in_sync = count * replicas
    self.own = range(number * replicas, (number + 1) * replicas)
    self.meeting = meeting

  def experimental_distribute_values_from_function(self, value_fn):
    contexts = [
      types.SimpleNamespace(replica_id_in_sync_group=i) for i in self.own
    ]
    return [value_fn(context) for context in contexts]

  def reduce(self, reduce_op, value, axis):
    assert reduce_op is tf.distribute.ReduceOp.SUM and axis is None
    return tf.constant(self.meeting.sum(value))


@pytest.fixture(params=[1, 2])
def gather(request, monkeypatch):
  """Makes the workers of a layout, in TensorFlow's order, all with a strategy.

  They have one replica each, or two.
  """

  def make(jobs):
    places = [(kind, i) for kind in jobs for i in range(len(jobs[kind]))]
    meeting, found = Meeting(len(places)), []
    for number, (kind, index) in enumerate(places):
      task = {"type": kind, "index": index}
      monkeypatch.setenv(
        "TF_CONFIG", json.dumps({"cluster": jobs, "task": task})
      )
      found.append(
        Workers(OfOneWorker(number, len(places), request.param, meeting))
      )
    return found

  return make


def all_at_once(workers, action):
  """Returns what `action(worker, its number)` returns for each."""
  with ThreadPoolExecutor(len(workers)) as pool:
    return list(pool.map(action, workers, range(len(workers))))


@pytest.mark.parametrize("jobs", LAYOUTS)
def test_every_worker_knows_its_place_and_one_is_the_chief(gather, jobs):
  workers = gather(jobs)
  assert {w.count for w in workers} == {len(workers)}
  assert [w.index for w in workers] == list(range(len(workers)))
  assert [w.chief for w in workers] == [True] + [False] * (len(workers) - 1)


@pytest.mark.parametrize("jobs", LAYOUTS)
def test_all_get_the_value_of_every_one_in_their_order(gather, jobs):
  workers = gather(jobs)
  expected = [10 + number for number in range(len(workers))]
  for _ in range(3):  # one meeting after another
    got = all_at_once(workers, lambda w, number: w.gathered(10 + number))
    assert got == [expected] * len(workers)
  big = 2**40  # no step count is too large
  assert all_at_once(workers, lambda w, _: w.gathered(big))[0] == (
    [big] * len(workers)
  )


def test_what_is_so_for_any_is_so_for_all(gather):
  workers = gather(LAYOUTS[1])
  for one in range(3):
    got = all_at_once(workers, lambda w, number: w.any(number == one))  # noqa: B023
    assert got == [True] * 3
  assert all_at_once(workers, lambda w, _: w.any(False)) == [False] * 3


def test_nobody_goes_on_before_all_have_come(gather):
  workers, there = gather(LAYOUTS[1]), []

  def come(worker, number):
    there.append(number)
    worker.meet()
    return len(there)

  assert all_at_once(workers, come) == [3] * 3


def test_checkpoints_of_different_steps_are_refused_by_all(gather):
  workers = gather(LAYOUTS[0])

  def check(steps):
    def check_one(worker, number):
      try:
        worker.check_same(steps[number], "runs/x")
      except UserError as error:
        return str(error)

    return all_at_once(workers, check_one)

  assert check([8, 8]) == [None, None]
  for message in check([8, 0]):
    assert "different steps in 'runs/x' (8, 0); give a --workdir" in message
