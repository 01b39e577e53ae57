"""The collective methods of `Workers`, with several workers in threads."""

import json
import threading
import types
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow as tf

from nfnets_tf.errors import UserError
from nfnets_tf.train.distribution import Workers

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
def test_single_process_gathers_its_value(make, monkeypatch):
  monkeypatch.delenv("TF_CONFIG", raising=False)
  workers = Workers(make())
  assert (workers.count, workers.index, workers.chief) == (1, 0, True)
  assert workers.all_gather(7) == [7]
  assert workers.any(True) is True and workers.any(False) is False
  workers.barrier()
  workers.check_same_step(3, "runs/x")


class FakeAllReduce:
  """Sums the rows of all replicas once every worker has added its own."""

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


class FakeWorkerStrategy(tf.distribute.MultiWorkerMirroredStrategy):
  """The strategy of one worker, whose collectives are a `FakeAllReduce`."""

  cluster_resolver = num_replicas_in_sync = None

  def __init__(self, number, count, replicas, all_reduce):
    self.cluster_resolver = (
      tf.distribute.cluster_resolver.TFConfigClusterResolver()
    )
    self.num_replicas_in_sync = count * replicas
    self.replicas = range(number * replicas, (number + 1) * replicas)
    self.all_reduce = all_reduce

  def experimental_distribute_values_from_function(self, value_fn):
    contexts = [
      types.SimpleNamespace(replica_id_in_sync_group=i) for i in self.replicas
    ]
    return [value_fn(context) for context in contexts]

  def reduce(self, reduce_op, value, axis):
    assert reduce_op is tf.distribute.ReduceOp.SUM and axis is None
    return tf.constant(self.all_reduce.sum(value))


@pytest.fixture(params=[1, 2])
def make_workers(request, monkeypatch):
  """Creates the workers of a layout, of one or two replicas each."""

  def make(jobs):
    places = [(kind, i) for kind in jobs for i in range(len(jobs[kind]))]
    all_reduce, workers = FakeAllReduce(len(places)), []
    for number, (kind, index) in enumerate(places):
      task = {"type": kind, "index": index}
      monkeypatch.setenv(
        "TF_CONFIG", json.dumps({"cluster": jobs, "task": task})
      )
      workers.append(
        Workers(
          FakeWorkerStrategy(number, len(places), request.param, all_reduce)
        )
      )
    return workers

  return make


def run_together(workers, action):
  """Returns action(worker, its number) of each, in threads."""
  with ThreadPoolExecutor(len(workers)) as pool:
    return list(pool.map(action, workers, range(len(workers))))


@pytest.mark.parametrize("jobs", LAYOUTS)
def test_index_count_and_chief_of_workers(make_workers, jobs):
  workers = make_workers(jobs)
  assert {w.count for w in workers} == {len(workers)}
  assert [w.index for w in workers] == list(range(len(workers)))
  assert [w.chief for w in workers] == [True] + [False] * (len(workers) - 1)


@pytest.mark.parametrize("jobs", LAYOUTS)
def test_all_gather_keeps_worker_order(make_workers, jobs):
  workers = make_workers(jobs)
  expected = [10 + number for number in range(len(workers))]
  for _ in range(3):
    actual = run_together(workers, lambda w, number: w.all_gather(10 + number))
    assert actual == [expected] * len(workers)
  big = 2**40  # no step count is too large
  assert run_together(workers, lambda w, _: w.all_gather(big))[0] == (
    [big] * len(workers)
  )


def test_any_is_true_if_true_on_one_worker(make_workers):
  workers = make_workers(LAYOUTS[1])
  for index in range(3):
    actual = run_together(workers, lambda w, number: w.any(number == index))  # noqa: B023
    assert actual == [True] * 3
  assert run_together(workers, lambda w, _: w.any(False)) == [False] * 3


def test_barrier_blocks_until_all_arrive(make_workers):
  workers, arrived = make_workers(LAYOUTS[1]), []

  def arrive(worker, number):
    arrived.append(number)
    worker.barrier()
    return len(arrived)

  assert run_together(workers, arrive) == [3] * 3


def test_refuses_workers_at_different_steps(make_workers):
  workers = make_workers(LAYOUTS[0])

  def check(steps):
    def check_one(worker, number):
      try:
        worker.check_same_step(steps[number], "runs/x")
      except UserError as error:
        return str(error)

    return run_together(workers, check_one)

  assert check([8, 8]) == [None, None]
  for message in check([8, 0]):
    assert "different steps in 'runs/x' (8, 0)" in message
