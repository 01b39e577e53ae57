import tensorflow as tf

from nfnets_tf.ops.roles import Role, mark, mark_rate, rate_of, role_of


def test_without_a_mark_the_rank_decides():
  assert role_of(tf.Variable(tf.zeros([2, 3]))) is Role.KERNEL
  assert role_of(tf.Variable(tf.zeros([3]))) is Role.VECTOR
  assert role_of(tf.Variable(0.0)) is Role.VECTOR


def test_a_mark_outweighs_the_rank_also_under_a_strategy():
  strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
  with strategy.scope():
    variable = mark(tf.Variable(tf.zeros([2, 3])), Role.HEAD_KERNEL)
  assert role_of(variable) is Role.HEAD_KERNEL


def test_treatments():
  treatments = {role: (role.clipped, role.decayed) for role in Role}
  assert treatments == {
    Role.KERNEL: (True, True),
    Role.HEAD_KERNEL: (False, True),
    Role.VECTOR: (True, False),
  }


def test_rates():
  variable = tf.Variable(0.0)
  assert rate_of(variable) == 1.0
  assert rate_of(mark_rate(variable, 0.25)) == 0.25
