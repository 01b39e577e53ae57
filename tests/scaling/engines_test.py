import logging
import os
import signal
import sys
import time
from concurrent import futures

import pytest

from nfnets_tf.errors import Preempted, UserError
from nfnets_tf.scaling import engines
from nfnets_tf.scaling.sweep import Sweep
from nfnets_tf.scaling.sweep_store import PENDING, SweepStore

# Says when it is up; on SIGTERM it runs a command, saves, and ends.
SLOW = """
trap '$1; sleep 0.3; echo saved; exit 143' TERM
echo up
while :; do sleep 0.05; done
"""


def shell(script, *arguments):
  return ["sh", "-c", script, "sh", *arguments]


def wait_for_all(engine, count):
  codes = {}
  while len(codes) < count:
    codes.update(engine.wait(60))
  return codes


def wait_until_up(log):
  for _ in range(3000):
    if os.path.exists(log) and "up" in open(log).read():
      return
    time.sleep(0.02)
  pytest.fail("the command did not start")


@pytest.fixture(scope="module")
def ray_engine(tmp_path_factory):
  """A Ray cluster on this machine, and the engine that started it."""
  ray = pytest.importorskip("ray")
  before = signal.getsignal(signal.SIGTERM)
  engine = engines.Ray(at_once=2, address=None, resources={"CPU": 0.5})
  log = tmp_path_factory.mktemp("ray") / "new" / "first.log"
  engine.submit("first", shell("echo hello"), str(log))
  assert engine.wait(120) == {"first": 0} and log.read_text() == "hello\n"
  assert signal.getsignal(signal.SIGTERM) == before
  yield engine
  ray.shutdown()


@pytest.fixture(
  params=["LocalProcesses", pytest.param("Ray", marks=pytest.mark.soak)]
)
def engine(request):
  """Each of the engines, with two commands at a time."""
  if request.param == "Ray":
    return request.getfixturevalue("ray_engine")
  return engines.LocalProcesses(at_once=2)


def test_wait_returns_exit_codes(engine, tmp_path):
  for name, script in {"a": "exit 0", "b": "exit 7", "c": "kill -9 $$"}.items():
    engine.submit(name, shell(script), str(tmp_path / name))
  assert wait_for_all(engine, 3) == {"a": 0, "b": 7, "c": -9}
  assert engine.wait(0.01) == {}


def test_output_is_appended_to_the_log(engine, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)  # the commands run there, too
  log = tmp_path / "a,b=1.log"
  log.write_text("before\n")
  script = "echo $1; echo wrong >&2; cat; pwd"
  engine.submit("a", shell(script, "a b'c"), log.name)
  wait_for_all(engine, 1)
  assert log.read_text() == f"before\na b'c\nwrong\n{tmp_path}\n"


def test_stop_terminates_and_waits(engine, tmp_path):
  logs = [tmp_path / "a", tmp_path / "b"]
  for log in logs:
    engine.submit(log.name, shell(SLOW, "true"), str(log))
    wait_until_up(log)
  assert engine.wait(0.05) == {}
  engine.stop()
  assert [log.read_text() for log in logs] == ["up\nsaved\n"] * 2
  assert engine.wait(0.01) == {}
  engine.stop()  # nothing runs
  engine.submit("c", shell("exit 3"), str(tmp_path / "c"))
  assert wait_for_all(engine, 1) == {"c": 3}


@pytest.mark.soak
def test_ray_logs_why_a_task_was_lost(ray_engine, monkeypatch, caplog):
  monkeypatch.setattr(logging.getLogger("nfnets_tf"), "propagate", True)
  ray_engine.submit("a", ["/no/such/program"], "/dev/null")
  assert wait_for_all(ray_engine, 1) == {"a": 1}
  (line,) = caplog.messages
  assert line.startswith("Ray lost a: ") and "/no/such/program" in line


@pytest.mark.soak
def test_ray_warns_of_missing_resources(ray_engine, monkeypatch, caplog):
  monkeypatch.setattr(logging.getLogger("nfnets_tf"), "propagate", True)
  needs = {"CPU": 1, "TPU": 4}
  engine = engines.Ray(at_once=1, address=None, resources=needs)
  engine.submit("a", shell("exit 0"), "/dev/null")
  assert "has {'CPU': 1, 'TPU': 4} yet; trials wait" in caplog.text
  assert engine.wait(0.1) == {}
  engine.stop()


def test_missing_ray_is_reported(monkeypatch):
  monkeypatch.setitem(sys.modules, "ray", None)
  engine = engines.Ray(at_once=1, address=None, resources={"CPU": 1})
  assert engine.wait(0.01) == {}
  engine.stop()
  with pytest.raises(UserError, match="needs the package ray; run pip install"):
    engine.submit("a", ["true"], "/dev/null")


class NoCluster:
  """The package ray where no cluster is running."""

  @staticmethod
  def is_initialized():
    return False

  @staticmethod
  def init(address, **options):
    del options
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise ConnectionError(f"Could not find {address}.\nMore.")


def test_missing_cluster_is_reported(monkeypatch):
  before = signal.getsignal(signal.SIGTERM)
  monkeypatch.setitem(sys.modules, "ray", NoCluster)
  engine = engines.Ray(at_once=1, address="auto", resources={"CPU": 1})
  message = "'auto' is not a running cluster .Could not find auto.; run `ray"
  with pytest.raises(UserError, match=message):
    engine.submit("a", ["true"], "/dev/null")
  assert signal.getsignal(signal.SIGTERM) == before


def test_number_of_processes_must_be_whole():
  with pytest.raises(UserError, match="LocalProcesses.at_once = 0 is invalid"):
    engines.LocalProcesses(at_once=0)
  with pytest.raises(UserError, match="Ray.at_once = 1.5 is invalid"):
    engines.Ray(at_once=1.5, address=None, resources={})


@pytest.mark.parametrize(
  "end, error",
  [
    ("exit 143", Preempted),
    ("kill -TERM $$", Preempted),
    ("kill -TERM $PPID; exec sleep 30", Preempted),
    ("kill -INT $PPID; exec sleep 30", KeyboardInterrupt),
  ],
)
def test_terminated_sweep_stops_its_points(tmp_path, end, error):
  # A shell starts background processes with SIGINT ignored.
  interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)
  engine = engines.LocalProcesses(at_once=2)
  sweep = Sweep(
    grid=[{"A": value} for value in range(4)],
    tuning=None,
    engine=engine,
    loss="loss",
    poll_seconds=0.1,
    price=None,
    report=None,
  )
  store, before = SweepStore(str(tmp_path)), signal.getsignal(signal.SIGTERM)
  # The first point signals the sweep again, as a machine that goes away does.
  slow = SLOW.replace("$1", "kill -TERM $PPID")
  all_up = f"until grep -q up {tmp_path}/logs/A=0.log; do sleep 0.02; done"
  script = f"case $1 in *A=0) {slow};; *A=1) {all_up}; {end};; esac"
  try:
    with pytest.raises(error):
      sweep.run(store, sweep.points, shell(script), lambda trials: None)
  finally:
    signal.signal(signal.SIGINT, interrupt)
  assert open(store.log("A=0")).read() == "up\nsaved\n"
  states = {name: trial.state for name, trial in store.trials().items()}
  assert states == {"A=0": PENDING, "A=1": PENDING}
  assert engine.wait(0) == {}
  assert signal.getsignal(signal.SIGTERM) == before


def test_other_threads_keep_the_signal_handler():
  before = signal.getsignal(signal.SIGTERM)

  def work():
    with engines.raising_on_sigterm() as terminating:
      assert not terminating and signal.getsignal(signal.SIGTERM) == before

  with futures.ThreadPoolExecutor() as pool:
    pool.submit(work).result()
