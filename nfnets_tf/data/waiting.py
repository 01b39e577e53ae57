"""How long training waits for data."""

import tensorflow as tf


class Waiting:
  """Adds up the time between asking for a batch and getting it.

  Where batches go to a device in the background, asking runs ahead of the
  device, and what it waits is more than what the device does.
  """

  def __init__(self):
    # No Python in the pipeline: see `faults.Faults`.
    with tf.device("CPU:0"):
      self._seconds = tf.Variable(0.0, dtype=tf.float64, trainable=False)

  def timed(self, batches: tf.data.Dataset) -> tf.data.Dataset:
    """Returns the same batches; each adds how long it was waited for."""
    # A zip asks for its parts one after the other, when it is itself asked.
    asked = tf.data.Dataset.counter().map(lambda _: tf.timestamp())

    def tell(asked, batch):
      with tf.control_dependencies(tf.nest.flatten(batch)):
        waited = tf.timestamp() - asked
      with tf.control_dependencies([self._seconds.assign_add(waited)]):
        return tf.nest.map_structure(tf.identity, batch)

    timed = tf.data.Dataset.zip((asked, batches)).map(tell)
    return timed.with_options(batches.options())

  def take(self) -> float:
    """Returns the seconds that were waited since the last call."""
    seconds = float(self._seconds)
    self._seconds.assign_sub(seconds)
    return seconds
