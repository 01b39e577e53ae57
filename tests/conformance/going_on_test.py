"""A run goes on with other replicas, a longer budget and other intervals."""

import json

import pytest
import tensorflow as tf

from nfnets_tf.config import Configuration
from nfnets_tf.ops.errors import Preempted, UserError
from nfnets_tf.optim.sam import SAM
from nfnets_tf.train.preemption import Notice
from nfnets_tf.train.session import Session
from nfnets_tf.train.strategy import one_device
from nfnets_tf.train.workdir import Workdir

SMOKE = [
  "gin/quickstart.gin",
  "gin/overlays/smoke.gin",
  "gin/overlays/sam.gin",
]


@pytest.fixture
def job(make_dataset):
  params = [
    f"DATA_DIR = {make_dataset()!r}",
    "run.Training.prepare = None",
    "NUM_CLASSES = 4",
    "NUM_EXAMPLES = 50",
    "BATCH_SIZE = 8",
    "EPOCHS = 2.08",
    "run.Training.checkpoint_every = 8",
    "nfnet.NFNet.stochdepth_rate = 0.3",
    "nfnet.NFNet.drop_rate = 0.3",
    "sam.SAM.every = 3",
  ]
  built = Configuration(SMOKE, params).build_job()
  assert built.total_steps == 13
  return built


def make(job, directory, strategy=None):
  return Session(
    job,
    Workdir(str(directory)),
    strategy or one_device(),
    job.train_split.index(),
    job.heldout_split.index(),
    parts=None,
  )


def run(job, directory, strategy=None):
  session = make(job, directory, strategy)
  session.fit(None)
  session.finish()
  return Workdir(str(directory)).read_result()


def records(directory):
  with open(directory / "metrics.jsonl") as file:
    found = [json.loads(line) for line in file]
  for record in found:
    for of_the_clock in ("images_per_second", "waiting_for_data"):
      record.pop(of_the_clock, None)
  return found


class AtStep(Notice):
  """Is received at a step."""

  def __init__(self, session, step):
    self._session, self._step = session, step

  @property
  def received(self):
    return self._session._checkpoints.step >= self._step


def numbers(directory):
  """All that is logged, but for the hashes of weights."""
  return [
    {k: v for k, v in record.items() if isinstance(v, (int, float))}
    for record in records(directory)
  ]


def test_on_other_numbers_of_replicas_the_trajectory_is_the_same(job, tmp_path):
  """With dropout, stochastic depth and SAM; saved within an interval."""
  job.sam = SAM(0.05, scope="global", every=3)
  make(job, tmp_path / "one").fit(None)
  for replicas, step in ((2, 3), (1, 13)):
    strategy = tf.distribute.MirroredStrategy(
      [f"CPU:{i}" for i in range(replicas)],
      tf.distribute.ReductionToOneDevice(),
    )
    session = make(job, tmp_path / "many", strategy)
    if step < job.total_steps:
      session._notice = AtStep(session, step)
      with pytest.raises(Preempted):
        session.fit(None)
  session.fit(None)
  pairs = list(zip(numbers(tmp_path / "one"), numbers(tmp_path / "many")))
  assert len(pairs) == 5
  for one, many in pairs:
    assert one == pytest.approx(many, rel=1e-5, abs=1e-5)


def test_a_longer_budget_and_another_interval_go_on(job, tmp_path):
  job.log_every, job.checkpoint_every, job.evaluate_every = 4, 4, 4
  run(job, tmp_path)
  first = records(tmp_path)
  job.total_steps, job.log_every = 20, 6
  job.checkpoint_every, job.evaluate_every = 6, 6
  assert run(job, tmp_path)["step"] == 20
  assert records(tmp_path)[: len(first)] == first
  logged = [r["step"] for r in records(tmp_path)[len(first) :] if "top1" in r]
  assert logged == [18, 20]
  job.total_steps = 14
  with pytest.raises(UserError, match="at step 20, beyond the 14 steps"):
    make(job, tmp_path)
