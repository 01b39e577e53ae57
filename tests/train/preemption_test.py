import os
import signal
import threading
import types

import pytest
import tensorflow as tf

from nfnets_tf.errors import Preempted
from nfnets_tf.train.distribution import Workers
from nfnets_tf.train.preemption import EndOnNotice, GoOnInInterval, Notice


def alone():
  return Workers(tf.distribute.get_strategy())


class WithAnother:
  """Stands for two `Workers`, the other of which has received it or not."""

  def __init__(self, received):
    self.other, self.asked = received, []

  def any(self, value):
    self.asked.append(value)
    return value or self.other


def test_a_notice_is_sigterm_and_only_while_it_is_listened_for():
  notice, others = Notice(alone()), []
  assert not notice.received
  before = signal.signal(signal.SIGTERM, lambda *_: others.append(1))
  try:
    with notice.listening():
      os.kill(os.getpid(), signal.SIGTERM)
    assert notice.received and not others
    os.kill(os.getpid(), signal.SIGTERM)
    assert others == [1]
  finally:
    signal.signal(signal.SIGTERM, before)


def test_another_thread_cannot_listen_and_goes_on():
  done = []

  def work():
    with Notice(alone()).listening():
      done.append(1)

  thread = threading.Thread(target=work)
  thread.start()
  thread.join()
  assert done == [1]


def test_what_one_worker_receives_all_are_told_and_each_is_asked():
  workers = WithAnother(received=False)
  notice = Notice(workers)
  assert not notice.received
  workers.other = True  # without any signal here
  assert notice.received
  with notice.listening():
    os.kill(os.getpid(), signal.SIGTERM)
  workers.other = False
  assert notice.received
  assert workers.asked == [False, False, True]


def end_on_notice(step, received=True):
  callback = EndOnNotice(
    Notice(WithAnother(received)), log_every=4, total_steps=14
  )
  iterations = tf.Variable(step)
  callback.model = types.SimpleNamespace(
    optimizer=types.SimpleNamespace(iterations=iterations)
  )
  return callback


def test_it_ends_at_the_next_step_but_not_before_an_interval_is_logged():
  with pytest.raises(Preempted):
    end_on_notice(6).on_train_batch_end(0)
  end_on_notice(8).on_train_batch_end(0)
  end_on_notice(14).on_train_batch_end(0)  # the last step
  with pytest.raises(Preempted):
    end_on_notice(8).on_epoch_end(0)
  with pytest.raises(Preempted):
    end_on_notice(8).on_test_batch_end(0)
  for step in (6, 8):
    callback = end_on_notice(step, received=False)
    callback.on_train_batch_end(0)
    callback.on_epoch_end(0)
    callback.on_test_batch_end(0)


def test_means_are_given_back_once():
  mean = tf.Variable(3.0)
  callback = GoOnInInterval([mean])
  mean.assign(0.0)  # as Keras does
  callback.on_epoch_begin(0)
  assert mean.numpy() == 3.0
  mean.assign(0.0)
  callback.on_epoch_begin(1)
  assert mean.numpy() == 0.0
