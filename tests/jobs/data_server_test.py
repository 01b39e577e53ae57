import pytest

from nfnets_tf.errors import UserError
from nfnets_tf.jobs import data_server
from nfnets_tf.jobs.job import RunContext


def test_serves_until_interrupted(monkeypatch):
  started = []

  def start(address):
    started.append(address)
    return "dispatcher", "worker"

  def interrupt(seconds):
    raise KeyboardInterrupt

  monkeypatch.setattr(data_server, "start_server", start)
  monkeypatch.setattr(data_server.time, "sleep", interrupt)
  job = data_server.DataServerJob(address="data-1:5000")
  assert "data-1:5000" in job.plan()
  with pytest.raises(KeyboardInterrupt):
    job.run(RunContext("", ""))
  assert started == ["data-1:5000"]


def test_rejects_a_malformed_address():
  with pytest.raises(UserError, match="'5000' is not the address"):
    data_server.DataServerJob(address="5000")
