import numpy as np
import pytest
import tensorflow as tf

from nfnets_tf.errors import UserError
from nfnets_tf.train.shares import (
  check_parts,
  cut,
  never_empty,
  place_in_batch,
)


def test_a_cut_knows_its_size_if_it_can():
  tensor = tf.reshape(tf.range(12), [6, 2])
  np.testing.assert_array_equal(cut(tensor, tf.constant(2), 3), tensor[2:5])

  @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.int32)])
  def of_unknown(tensor):
    assert cut(tensor, 1, 3).shape == [3, 2]
    assert cut(tensor, 1, tf.shape(tensor)[0] - 1).shape[1] == 2
    return cut(tensor, 1, tf.shape(tensor)[0] - 1)

  np.testing.assert_array_equal(of_unknown(tensor), tensor[1:])


@pytest.mark.parametrize("weighted", [False, True])
def test_nothing_becomes_one_example_of_weight_0(weighted):
  for size in (0, 2):
    data = [tf.ones([size, 4, 4, 3], tf.uint8), tf.ones([size], tf.int64)]
    data += [tf.fill([size], 0.5)] if weighted else []
    full, examples = never_empty(data, tf.constant(size))
    assert examples == max(size, 1)
    assert [len(tensor) for tensor in full] == [examples] * 3
    want = [0.5 if weighted else 1.0] * size or [0.0]
    np.testing.assert_array_equal(full[2], want)
    np.testing.assert_array_equal(full[1][:size], data[1])


def test_check_parts():
  check_parts(8, 4)
  with pytest.raises(UserError, match="7 examples .* into 2 micro-batches"):
    check_parts(7, 2)
  for number in (0, -1, 2.0):
    with pytest.raises(UserError, match="micro_batches = .* cannot be used"):
      check_parts(8, number)


@pytest.mark.parametrize(
  "sizes, places", [([3, 1], [0, 3]), ([2, 0], [0, 1]), ([0, 0], [0, 0])]
)
def test_an_uneven_share_knows_its_place(sizes, places):
  strategy = tf.distribute.MirroredStrategy(
    ["CPU:0", "CPU:1"], tf.distribute.ReductionToOneDevice()
  )

  @tf.function
  def run():
    def replica():
      context = tf.distribute.get_replica_context()
      size = tf.gather(sizes, context.replica_id_in_sync_group)
      return tf.stack(place_in_batch(size, 2))

    return strategy.run(replica)

  found = [x.numpy() for x in strategy.experimental_local_results(run())]
  assert [first for first, _ in found] == places
  assert {whole for _, whole in found} == {max(sum(sizes), 1)}
