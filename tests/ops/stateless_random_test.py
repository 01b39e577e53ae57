import threading

import numpy as np
import tensorflow as tf

from nfnets_tf.ops import stateless_random


def draw(seed, name="layer"):
  with stateless_random.seed_scope(tf.constant(seed)):
    return stateless_random.seed_for(name).numpy().tolist()


def test_seed_is_a_function_of_the_step_and_the_name():
  assert draw([0, 1]) == draw([0, 1])
  different = [draw([0, 1]), draw([0, 2]), draw([1, 1]), draw([0, 1], "b")]
  assert len({tuple(seed) for seed in different}) == 4


def test_every_call_outside_a_scope_is_new():
  seeds = [stateless_random.seed_for("layer").numpy() for _ in range(3)]
  assert not np.array_equal(seeds[0], seeds[1])
  assert not np.array_equal(seeds[1], seeds[2])


def test_leaving_a_scope_restores_the_outer_one():
  with stateless_random.seed_scope(tf.constant([0, 1])):
    before = stateless_random.seed_for("x").numpy()
    with stateless_random.seed_scope(tf.constant([0, 2])):
      assert not np.array_equal(stateless_random.seed_for("x"), before)
    np.testing.assert_array_equal(stateless_random.seed_for("x"), before)


def test_scope_is_local_to_its_thread():
  seeds = []
  with stateless_random.seed_scope(tf.constant([0, 1])):
    here = stateless_random.seed_for("layer").numpy()
    thread = threading.Thread(
      target=lambda: seeds.append(stateless_random.seed_for("layer").numpy())
    )
    thread.start()
    thread.join()
  assert not np.array_equal(seeds[0], here)


def test_micro_batch_draws_its_rows_of_the_whole_batch():
  seed = tf.constant([0, 1])
  with stateless_random.seed_scope(seed):
    whole = stateless_random.uniform("layer", [8, 3]).numpy()
  assert 0 <= whole.min() and whole.max() < 1 and len(np.unique(whole)) == 24
  for start, size in ((0, 8), (0, 3), (2, 4), (7, 1)):
    with stateless_random.seed_scope(seed, first_example=start, batch_size=8):
      part = stateless_random.uniform("layer", [size, 3])
    np.testing.assert_array_equal(part, whole[start : start + size])


def test_every_step_has_another_seed():
  def seed(first, step):
    return tuple(
      stateless_random.step_seed(first, tf.constant(step, tf.int64)).numpy()
    )

  assert seed(0, 1) == seed(0, 1)
  assert len({seed(0, 0), seed(0, 1), seed(1, 0), seed(1, 1)}) == 4


def test_numbers_are_the_same_when_compiled_and_evenly_spread():
  def draw():
    with stateless_random.seed_scope(tf.constant([0, 1])):
      return stateless_random.uniform("layer", [100, 100])

  numbers = draw().numpy()
  np.testing.assert_array_equal(tf.function(draw, jit_compile=True)(), numbers)
  counts, _ = np.histogram(numbers, bins=10, range=(0, 1))
  assert counts.sum() == 10_000 and abs(counts - 1000).max() < 150
