"""A run that meets what is not finite goes back, on, or ends with names."""

import json

import numpy as np
import pytest
import tensorflow as tf

from nfnets_tf.config import Configuration
from nfnets_tf.data.pipeline import DataStream, Split
from nfnets_tf.errors import Preempted, UserError
from nfnets_tf.train import session as session_module
from nfnets_tf.train.recovery import Recovery

SMOKE = ["gin/quickstart.gin", "gin/overlays/smoke.gin"]
BATCH = 8


class Spoiled(Split):
  """Gives labels that are not finite in some batches of the order."""

  spoiled = ()

  def training_batches(self, index, *, start_step, **options):
    batches = super().training_batches(index, start_step=start_step, **options)

    def spoil(number, batch):
      images, labels, weights = batch
      found = tf.reduce_any(number == tf.constant(self.spoiled, tf.int64))
      bad = tf.where(found, float("nan"), 1.0)
      return images, tf.one_hot(labels, 4), weights * bad

    return batches.enumerate(start_step).map(lambda n, b: spoil(n, b))


@pytest.fixture
def job(make_dataset):
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
  built = Configuration(SMOKE, params).build_job()
  built.data.train_split.__class__ = Spoiled
  assert built.schedule.total_steps == 14
  built.recovery = Recovery(in_a_row=3, rollbacks=1)
  return built


@pytest.fixture
def run(open_session):
  def whole(job, directory):
    session = open_session(job, directory)
    session.fit(None)
    return session

  return whole


def weights(session):
  model = session.classifier
  return [v.numpy() for v in (*model.network.weights, *model.averages)]


def test_a_few_steps_are_left_out_and_nothing_else_happens(
  job, run, logged, tmp_path
):
  job.data.train_split.spoiled = (5, 6)
  run(job, tmp_path)
  assert not (tmp_path / "rollbacks.json").exists()
  skipped = [
    r["skipped_steps"] for r in logged(tmp_path) if "skipped_steps" in r
  ]
  assert skipped == [0, 0.5, 0, 0]


def test_more_in_a_row_go_back_and_on_behind_them(
  job, run, logged, tmp_path, caplog
):
  """And never again meet what was not finite, also when ended anywhere."""
  job.data.train_split.spoiled = (5, 6, 7)
  session = run(job, tmp_path / "whole")
  with open(tmp_path / "whole" / "rollbacks.json") as file:
    assert json.load(file) == [
      {"at_step": 8, "to_step": 4, "data_offset": 4, "batches": [5, 8]}
    ]
  assert "3 steps in a row up to step 8 were not finite" in caplog.text
  training = [r for r in logged(tmp_path / "whole") if "top1" in r]
  assert [r["skipped_steps"] for r in training] == [0] * 4
  # As if the order of examples had had no such batches, and the one before.
  job.data.train_split.spoiled = ()
  plain = Split.training_batches

  def skipping(self, index, *, start_step, **options):
    first = plain(self, index, start_step=start_step, **options)
    if start_step >= 4:
      return plain(self, index, start_step=start_step + 4, **options)
    rest = plain(self, index, start_step=8, **options)
    return first.take(4 - start_step).concatenate(rest)

  job.data.train_split.__class__ = type(
    "Skipping", (Split,), {"training_batches": skipping}
  )
  for a, b in zip(weights(session), weights(run(job, tmp_path / "skipping"))):
    np.testing.assert_array_equal(a, b)


def test_ended_behind_a_return_it_takes_the_same_way(
  job, run, open_session, logged, tmp_path
):
  job.data.train_split.spoiled = (5, 6, 7)
  whole = run(job, tmp_path / "whole")
  for step in (7, 6, 9):  # before the return, behind it, behind a checkpoint
    session = open_session(job, tmp_path / "parted")

    class Asked:
      listening = session._notice.listening

      @property
      def received(self, session=session, step=step):
        return session._checkpoints.step == step

    session._notice = Asked()
    with pytest.raises(Preempted):
      session.fit(None)
  parted = run(job, tmp_path / "parted")
  for a, b in zip(weights(whole), weights(parted)):
    np.testing.assert_array_equal(a, b)
  assert logged(tmp_path / "whole") == logged(tmp_path / "parted")


def test_killed_right_behind_the_note_it_has_gone_back(
  job, run, tmp_path, monkeypatch
):
  job.data.train_split.spoiled = (7, 8, 9)
  whole = run(job, tmp_path / "whole")

  class Killed(Exception):
    pass

  def die(self):
    raise Killed

  with monkeypatch.context() as patch:
    patch.setattr(session_module.Checkpoints, "discard_later", die)
    with pytest.raises(Killed):
      run(job, tmp_path / "killed")
  again = run(job, tmp_path / "killed")
  for a, b in zip(weights(whole), weights(again)):
    np.testing.assert_array_equal(a, b)


def test_too_often_it_stops_and_names_the_examples(job, run, tmp_path):
  job.data.train_split.spoiled = (5, 6, 7, 10, 11, 12)
  with pytest.raises(UserError) as caught:
    run(job, tmp_path)
  assert "after 1 returns to earlier checkpoints" in str(caught.value)
  rows = (tmp_path / "not_finite.tsv").read_text().splitlines()[1:]
  assert len(rows) == 3 * BATCH
  named = {}
  for row in rows:
    number, name = row.split("\t")
    named.setdefault(int(number), []).append(name)
  assert list(named) == [10, 11, 12]
  # What the pipeline gives for those batches: pixels tell a file's number.
  split = job.data.train_split
  split.__class__, split.transforms = Split, ()
  index = split.read_info()
  stream = DataStream(BATCH, job.data.shuffle_buffer, job.seed)
  examples = split.training_examples(index, stream=stream, start_step=10)
  kinds = {"image/encoded": tf.io.FixedLenFeature([], tf.string)}
  for (_, record), row in zip(examples.take(len(rows)), rows):
    image = tf.io.parse_single_example(record, kinds)["image/encoded"]
    number = tf.io.decode_png(image).numpy()[0, 0, 0]
    assert row.split("\t")[1] == f"{number}.png"
  assert named[10][0] in str(caught.value)
