"""Non-finite steps: skipped, rolled back, or the end of the run."""

import dataclasses
import json

import numpy as np
import pytest
import tensorflow as tf

from nfnets_tf.config import Configuration
from nfnets_tf.errors import Diverged, Preempted, UserError
from nfnets_tf.train.rollback import Recovery, Rollback, RollbackHistory
from tests.support.preemption import PreemptedAt

TINY = ["gin/quickstart.gin", "tests/support/tiny.gin"]
BATCH = 8
FIRST = Rollback(at_step=20, to_step=8, data_offset=12, batches=(17, 20))
SECOND = Rollback(at_step=30, to_step=8, data_offset=34, batches=(40, 42))


class SpoiledSplit:
  """A split with non-finite labels in some batches of its order."""

  def __init__(self, split, spoiled):
    self._split, self._spoiled = split, spoiled

  def __getattr__(self, name):
    return getattr(self._split, name)

  def training_batches(self, index, *, start_step, **options):
    batches = self._split.training_batches(
      index, start_step=start_step, **options
    )

    def spoil(number, batch):
      images, labels, weights = batch
      is_spoiled = tf.reduce_any(number == tf.constant(self._spoiled, tf.int64))
      factor = tf.where(is_spoiled, float("nan"), 1.0)
      return images, tf.one_hot(labels, 4), weights * factor

    return batches.enumerate(start_step).map(spoil)


class SkippingSplit(SpoiledSplit):
  """The same without four batches of its order, from number 4 on."""

  def training_batches(self, index, *, start_step, **options):
    make = self._split.training_batches
    first = make(index, start_step=start_step, **options)
    rest = make(index, start_step=8, **options)
    assert start_step < 4
    return first.take(4 - start_step).concatenate(rest)


@pytest.fixture
def make_job(make_dataset):
  """Returns a function that makes a run of 14 steps with spoiled batches."""
  params = [
    f"DATA_DIR = {make_dataset()!r}",
    "run_config.DataConfig.prepare = None",
    "NUM_CLASSES = 4",
    "NUM_EXAMPLES = 50",
    f"BATCH_SIZE = {BATCH}",
    "EPOCHS = 2.3",
    "run_config.Schedule.steps_per_execution = 1",
    "run_config.Schedule.evaluate_every = 4",
    "run_config.Schedule.checkpoint_every = 4",
    "run_config.Schedule.checkpoints_to_keep = 9",
  ]

  def make(*spoiled, split_class=SpoiledSplit, skips=3):
    job = Configuration(TINY, params).build_job()
    assert job.schedule.total_steps == 14
    split = split_class(job.data.train_split, spoiled)
    job.data = dataclasses.replace(job.data, train_split=split)
    job.recovery = Recovery(max_consecutive_skips=skips, max_rollbacks=1)
    return job

  return make


@pytest.fixture
def train(open_trainer):
  """Returns a function that trains a job to its end."""

  def train(job, directory):
    trainer = open_trainer(job, directory)
    trainer.fit(None)
    return trainer

  return train


def assert_same_weights(trainer, other):
  models = trainer.classifier, other.classifier
  pairs = [(*model.network.weights, *model.averages) for model in models]
  for a, b in zip(*pairs):
    np.testing.assert_array_equal(a, b)


def test_skips_a_few_nonfinite_steps_without_rollback(
  make_job, train, logged, tmp_path
):
  train(make_job(5, 6, 8, 9, 10, 11, skips=5), tmp_path)
  assert not (tmp_path / "rollbacks.json").exists()
  records = [r for r in logged(tmp_path) if "skipped_steps" in r]
  assert [r["skipped_steps"] for r in records] == [0, 0.5, 1, 0]
  # Metrics of an interval without any finite step do not exist.
  assert records[2].keys() == {
    "step",
    "skipped_steps",
    "invalid_examples",
    "learning_rate",
  }


def test_rolls_back_and_resumes_after_the_bad_batches(
  make_job, train, logged, tmp_path, caplog
):
  trainer = train(make_job(5, 6, 7), tmp_path / "spoiled")
  rollbacks = json.loads((tmp_path / "spoiled/rollbacks.json").read_text())
  assert rollbacks == [
    {"at_step": 8, "to_step": 4, "data_offset": 4, "batches": [5, 8]}
  ]
  assert "3 steps in a row up to step 8 were not finite" in caplog.text
  training = [r for r in logged(tmp_path / "spoiled") if "top1" in r]
  assert [r["skipped_steps"] for r in training] == [0] * 4
  # As if the order had neither those batches nor the one before them.
  skipping = make_job(split_class=SkippingSplit)
  assert_same_weights(trainer, train(skipping, tmp_path / "skipping"))


@pytest.mark.soak
def test_resumes_bit_identically_around_a_rollback(
  make_job, train, open_trainer, logged, tmp_path
):
  whole = train(make_job(5, 6, 7), tmp_path / "whole")
  # In the steps before the rollback, after it, after a new checkpoint.
  for step in (7, 6, 9):
    trainer = open_trainer(make_job(5, 6, 7), tmp_path / "interrupted")
    PreemptedAt(trainer, step)
    with pytest.raises(Preempted):
      trainer.fit(None)
  interrupted = train(make_job(5, 6, 7), tmp_path / "interrupted")
  assert_same_weights(whole, interrupted)
  assert logged(tmp_path / "whole") == logged(tmp_path / "interrupted")


@pytest.mark.soak
def test_resumes_bit_identically_after_kill_during_rollback(
  make_job, train, open_trainer, tmp_path, monkeypatch
):
  whole = train(make_job(7, 8, 9), tmp_path / "whole")

  class Killed(Exception):
    pass

  def die():
    raise Killed

  trainer = open_trainer(make_job(7, 8, 9), tmp_path / "killed")
  monkeypatch.setattr(trainer.checkpoints, "discard_later", die)
  with pytest.raises(Killed):
    trainer.fit(None)
  assert_same_weights(whole, train(make_job(7, 8, 9), tmp_path / "killed"))


def test_diverges_after_max_rollbacks_and_names_examples(
  make_job, train, tmp_path
):
  job = make_job(5, 6, 7, 10, 11, 12)
  with pytest.raises(Diverged, match="after 1 rollbacks") as caught:
    train(job, tmp_path)
  rows = (tmp_path / "not_finite.tsv").read_text().splitlines()[1:]
  assert len(rows) == 3 * BATCH
  names = {}
  for row in rows:
    number, name = row.split("\t")
    names.setdefault(int(number), []).append(name)
  assert list(names) == [10, 11, 12]
  assert names[10][0] in str(caught.value)
  # Every example comes once in an epoch, and batches 10 and 11 are in one.
  assert len({*names[10], *names[11]}) == 2 * BATCH


@pytest.mark.parametrize(
  "options, name",
  [
    ((0, 1), "max_consecutive_skips = 0"),
    ((1, -1), "max_rollbacks = -1"),
  ],
)
def test_recovery_refuses_numbers_out_of_range(options, name):
  skips, rollbacks = options
  with pytest.raises(UserError, match=f"rollback.Recovery.{name} is invalid"):
    Recovery(max_consecutive_skips=skips, max_rollbacks=rollbacks)


def test_only_the_writer_saves_the_history(tmp_path):
  path = tmp_path / "rollbacks.json"
  RollbackHistory(str(path), writes=False).add(FIRST)
  assert not path.exists()
  for rollback in (FIRST, SECOND):
    RollbackHistory(str(path)).add(rollback)
  assert RollbackHistory(str(path)).rollbacks == [FIRST, SECOND]


@pytest.mark.parametrize(
  "step, offset, abandoned, continues_with",
  [
    (4, 0, False, 0),  # from before
    (8, 0, False, 34),  # rolled back to
    (16, 0, True, None),  # of the first path
    (16, 12, True, None),  # of the path after the first rollback
    (16, 34, False, 34),  # of the last one
  ],
)
def test_detects_abandoned_checkpoints(
  tmp_path, step, offset, abandoned, continues_with
):
  history = RollbackHistory(str(tmp_path / "none"))
  assert not history.is_abandoned(step, offset)
  assert history.offset_at(step, offset) == offset
  for rollback in (FIRST, SECOND):
    history.add(rollback)
  assert history.is_abandoned(step, offset) is abandoned
  if not abandoned:
    assert history.offset_at(step, offset) == continues_with


def test_drops_rollbacks_to_lost_checkpoints(tmp_path):
  path = str(tmp_path / "rollbacks.json")
  history = RollbackHistory(path)
  later = SECOND._replace(to_step=50)
  for rollback in (FIRST, later):
    history.add(rollback)
  history.drop_later(50)
  assert RollbackHistory(path).rollbacks == [FIRST, later]
  history.drop_later(40)
  assert RollbackHistory(path).rollbacks == history.rollbacks == [FIRST]
