import types

from nfnets_tf.train.callbacks import Every, LogTraining, current_step


class Iterations:
  def __init__(self, step):
    self.step = step

  def numpy(self):
    return self.step


def model_at(step):
  optimizer = types.SimpleNamespace(iterations=Iterations(step))
  return types.SimpleNamespace(optimizer=optimizer)


class Spy:
  def __init__(self):
    self.calls = []

  def update(self, step, loss):
    self.calls.append(("update", step, loss))
    return 320.0

  def resume_clock(self):
    self.calls.append("resume")

  def write(self, step, record):
    self.calls.append((step, record))


def test_an_interval_is_logged_under_the_optimizers_step():
  log, progress = Spy(), Spy()
  callback = LogTraining(log, progress, lambda step: step / 100)
  callback.set_model(model_at(40))
  callback.on_epoch_end(0, {"loss": 1.5, "top1": 0.25})
  assert progress.calls == [("update", 40, 1.5)]
  record = {"loss": 1.5, "top1": 0.25, "learning_rate": 0.4}
  assert log.calls == [(40, {**record, "images_per_second": 320.0})]


def test_every_acts_on_multiples_and_stops_the_clock():
  acted, progress = [], Spy()
  callback = Every(20, acted.append, progress)
  for step in (10, 20, 30, 40):
    callback.set_model(model_at(step))
    callback.on_epoch_end(0)
  assert acted == [20, 40] and progress.calls == ["resume"] * 2


def test_current_step():
  assert current_step(model_at(7)) == 7
