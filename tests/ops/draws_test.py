import threading

import numpy as np
import tensorflow as tf

from nfnets_tf.ops import draws


def draw(seed, name="layer"):
  with draws.using(tf.constant(seed)):
    return draws.seed_for(name).numpy().tolist()


def test_seed_is_a_function_of_the_step_and_the_name():
  assert draw([0, 1]) == draw([0, 1])
  different = [draw([0, 1]), draw([0, 2]), draw([1, 1]), draw([0, 1], "b")]
  assert len({tuple(seed) for seed in different}) == 4


def test_outside_a_step_every_call_is_new():
  seeds = [draws.seed_for("layer").numpy() for _ in range(3)]
  assert not np.array_equal(seeds[0], seeds[1])
  assert not np.array_equal(seeds[1], seeds[2])


def test_leaving_restores_what_was_before():
  with draws.using(tf.constant([0, 1])):
    before = draws.seed_for("x").numpy()
    with draws.using(tf.constant([0, 2])):
      assert not np.array_equal(draws.seed_for("x"), before)
    np.testing.assert_array_equal(draws.seed_for("x"), before)


def test_replicas_traced_in_other_threads_do_not_see_it():
  seen = []
  with draws.using(tf.constant([0, 1])):
    thread = threading.Thread(
      target=lambda: seen.append(getattr(draws._ACTIVE, "step", None))
    )
    thread.start()
    thread.join()
  assert seen == [None]


def test_a_part_of_the_batch_draws_what_it_draws_in_the_whole():
  seed = tf.constant([0, 1])
  with draws.using(seed):
    whole = draws.uniform("layer", [8, 3]).numpy()
  assert 0 <= whole.min() and whole.max() < 1 and len(np.unique(whole)) == 24
  for start, size in ((0, 8), (0, 3), (2, 4), (7, 1)):
    with draws.using(seed, start=start, whole=8):
      part = draws.uniform("layer", [size, 3])
    np.testing.assert_array_equal(part, whole[start : start + size])


def test_steps_have_seeds_of_their_own():
  def seed(first, step):
    return tuple(draws.step_seed(first, tf.constant(step, tf.int64)).numpy())

  assert seed(0, 1) == seed(0, 1)
  assert len({seed(0, 0), seed(0, 1), seed(1, 0), seed(1, 1)}) == 4


def test_numbers_are_the_same_when_compiled_and_evenly_spread():
  def draw():
    with draws.using(tf.constant([0, 1])):
      return draws.uniform("layer", [100, 100])

  numbers = draw().numpy()
  np.testing.assert_array_equal(tf.function(draw, jit_compile=True)(), numbers)
  counts, _ = np.histogram(numbers, bins=10, range=(0, 1))
  assert counts.sum() == 10_000 and abs(counts - 1000).max() < 150
