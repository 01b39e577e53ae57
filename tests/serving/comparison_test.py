import numpy as np
import pytest

from nfnets_tf.serving import comparison
from nfnets_tf.serving.comparison import (
  Answers,
  ask,
  describe,
  largest_difference,
  top1,
)

BEFORE = Answers("in training", np.array([[4.0, 0], [0, 2], [1, 2]]), 0.5, 4e6)


def test_every_image_is_asked_once_and_one_is_timed(monkeypatch):
  ticks = iter([0.0, 0.1, 1.0, 1.3, 2.0, 2.2] + [float(i) for i in range(99)])
  monkeypatch.setattr(comparison.time, "perf_counter", lambda: next(ticks))
  monkeypatch.setattr(comparison, "_ROUNDS", 3)
  sizes = []

  def call(images):
    sizes.append(len(images))
    return images * 2

  answers = ask("twice", call, np.arange(19.0)[:, None], 7)
  np.testing.assert_array_equal(answers.logits[:, 0], 2 * np.arange(19.0))
  assert sizes[:3] == [8, 8, 3] and set(sizes[3:]) == {1}
  assert answers.seconds == pytest.approx(0.2)  # the median of three
  assert (answers.name, answers.num_bytes) == ("twice", 7)


def test_what_takes_long_is_timed_less_often(monkeypatch):
  ticks = iter(range(0, 10_000, 3))
  monkeypatch.setattr(comparison.time, "perf_counter", lambda: next(ticks))
  calls = []
  answers = ask("slow", lambda x: calls.append(1) or x, np.ones([1, 1]), 0)
  assert len(calls) == 3  # the answer, the compilation, one that is timed
  assert answers.seconds == 3


def test_a_difference_is_relative_to_the_largest_logit():
  other = Answers("other", BEFORE.logits + [[0, 0], [0, -0.5], [0.2, 0]], 1, 1)
  assert largest_difference(other, BEFORE) == pytest.approx(0.5 / 4)
  assert largest_difference(BEFORE, BEFORE) == 0


def test_top1_counts_labels():
  assert top1(BEFORE, np.array([0, 1, 0])) == pytest.approx(2 / 3)


def test_a_part_of_the_answers_is_of_the_same_images():
  part = BEFORE.of(slice(1, None))
  np.testing.assert_array_equal(part.logits, BEFORE.logits[1:])
  assert (part.name, part.seconds) == (BEFORE.name, BEFORE.seconds)


def test_a_line_tells_difference_accuracy_size_and_time():
  after = Answers("after", np.array([[4.0, 0], [2, 0], [1, 2]]), 0.25, 1e6)
  labels = np.array([0, 1, 1])
  assert describe(after, BEFORE, labels) == (
    "after: differs by 5.0e-01 of the largest logit at most, same class for 2"
    " of 3 images; top-1 66.67% (before: 100.00%); 1.0 MB (before: 4.0); 250.0"
    " ms an image (before: 500.0)"
  )
  assert "top-1" not in describe(after, BEFORE, None)
