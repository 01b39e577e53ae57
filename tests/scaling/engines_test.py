import json
import logging
import os
import signal
import sys
import time
from concurrent import futures

import pytest

from nfnets_tf.errors import Preempted, UserError
from nfnets_tf.scaling import engines
from nfnets_tf.scaling.board import FAILED, PENDING
from nfnets_tf.scaling.sweep import Sweep

# Says when it is up; asked to end, it tells another, takes its time, and ends.
SLOW = """
trap '$1; sleep 0.3; echo saved; exit 143' TERM
echo up
while :; do sleep 0.05; done
"""


def shell(script, *arguments):
  return ["sh", "-c", script, "sh", *arguments]


def wait_for_all(engine, count):
  done = {}
  while len(done) < count:
    done.update(engine.wait(60))
  return done


def wait_until_up(log):
  for _ in range(3000):
    if os.path.exists(log) and "up" in open(log).read():
      return
    time.sleep(0.02)
  pytest.fail("it did not begin")


@pytest.fixture(scope="module")
def ray_engine(tmp_path_factory):
  """A Ray cluster of this machine, and the engine that started it."""
  ray = pytest.importorskip("ray")
  before = signal.getsignal(signal.SIGTERM)
  engine = engines.Ray(at_once=2, address=None, resources={"CPU": 0.5})
  log = tmp_path_factory.mktemp("ray") / "new" / "first.log"
  engine.submit("first", shell("echo hello"), str(log))
  assert engine.wait(120) == {"first": 0} and log.read_text() == "hello\n"
  # What a sweep does when it is asked to end is not Ray's to say.
  assert signal.getsignal(signal.SIGTERM) == before
  yield engine
  ray.shutdown()


@pytest.fixture(params=["LocalProcesses", "Ray"])
def engine(request):
  """Each of the engines, at two commands at a time."""
  if request.param == "Ray":
    return request.getfixturevalue("ray_engine")
  return engines.LocalProcesses(at_once=2)


def test_commands_end_with_their_exit_codes(engine, tmp_path):
  for name, script in {"a": "exit 0", "b": "exit 7", "c": "kill -9 $$"}.items():
    engine.submit(name, shell(script), str(tmp_path / name))
  assert wait_for_all(engine, 3) == {"a": 0, "b": 7, "c": -9}
  assert engine.wait(0.01) == {}


def test_what_they_say_is_appended_to_their_log(engine, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)  # is where they work, too
  log = tmp_path / "a,b=1.log"
  log.write_text("before\n")
  script = "echo $1; echo wrong >&2; cat; pwd"
  engine.submit("a", shell(script, "a b'c"), log.name)
  wait_for_all(engine, 1)
  assert log.read_text() == f"before\na b'c\nwrong\n{tmp_path}\n"


def test_waiting_ends_when_nothing_does(engine, tmp_path):
  log = str(tmp_path / "log")
  engine.submit("a", shell("echo up; read x; sleep 0.5"), log)
  wait_until_up(log)
  assert engine.wait(0.05) == {} and wait_for_all(engine, 1) == {"a": 0}


def test_stopping_asks_all_to_save_and_waits_until_they_have(engine, tmp_path):
  logs = [tmp_path / "a", tmp_path / "b"]
  for log in logs:
    engine.submit(log.name, shell(SLOW, "true"), str(log))
    wait_until_up(log)
  begin = time.monotonic()
  engine.stop()
  assert [log.read_text() for log in logs] == ["up\nsaved\n"] * 2
  assert time.monotonic() - begin >= 0.3
  assert engine.wait(0.01) == {}
  engine.stop()  # of nothing
  engine.submit("c", shell("exit 3"), str(tmp_path / "c"))
  assert wait_for_all(engine, 1) == {"c": 3}


def test_ray_says_why_nothing_began(ray_engine, monkeypatch, caplog):
  monkeypatch.setattr(logging.getLogger("nfnets_tf"), "propagate", True)
  ray_engine.submit("a", ["/no/such/program"], "/dev/null")
  assert wait_for_all(ray_engine, 1) == {"a": 1}
  (line,) = caplog.messages
  assert line.startswith("Ray lost a: ") and "/no/such/program" in line


def test_what_no_machine_has_is_told(ray_engine, monkeypatch, caplog):
  monkeypatch.setattr(logging.getLogger("nfnets_tf"), "propagate", True)
  needs = {"CPU": 1, "TPU": 4}
  engine = engines.Ray(at_once=1, address=None, resources=needs)
  engine.submit("a", shell("exit 0"), "/dev/null")
  assert caplog.messages == [
    "No machine of the Ray cluster has {'CPU': 1, 'TPU': 4} now; points wait"
    " until one has."
  ]
  assert engine.wait(0.1) == {}
  engine.stop()


def test_without_ray_one_is_told_how_to_get_it(monkeypatch):
  monkeypatch.setitem(sys.modules, "ray", None)
  engine = engines.Ray(at_once=1, address=None, resources={"CPU": 1})
  assert engine.wait(0.01) == {}
  engine.stop()
  with pytest.raises(UserError) as error:
    engine.submit("a", ["true"], "/dev/null")
  assert str(error.value) == (
    "engines.Ray needs the package ray, which is not installed; pip install"
    ' "nfnets_tf[ray]", or bind sweep.Sweep.engine to'
    " @engines.LocalProcesses()."
  )


def test_a_cluster_that_is_not_there_is_told(monkeypatch):
  class NoCluster:
    is_initialized = staticmethod(lambda: False)

    @staticmethod
    def init(address, **options):
      signal.signal(signal.SIGTERM, signal.SIG_IGN)
      raise ConnectionError(f"Could not find {address}.\nMore.")

  before = signal.getsignal(signal.SIGTERM)
  monkeypatch.setitem(sys.modules, "ray", NoCluster)
  engine = engines.Ray(at_once=1, address="auto", resources={"CPU": 1})
  with pytest.raises(UserError) as error:
    engine.submit("a", ["true"], "/dev/null")
  assert signal.getsignal(signal.SIGTERM) == before
  assert str(error.value) == (
    "engines.Ray.address = 'auto' cannot be used (Could not find auto); start a"
    " cluster by `ray start`, or bind it to None to start one here."
  )


def test_a_number_of_commands_is_whole():
  with pytest.raises(UserError, match="LocalProcesses.at_once = 0 cannot"):
    engines.LocalProcesses(at_once=0)
  with pytest.raises(UserError, match="Ray.at_once = 1.5 cannot"):
    engines.Ray(at_once=1.5, address=None, resources={})


def sweep_of(engine, tmp_path):
  """A sweep of four points, and its board."""
  sweep = Sweep(
    grid=[{"A": value} for value in range(4)],
    tuning=None,
    engine=engine,
    loss="loss",
    lease_seconds=60,
    poll_seconds=0.1,
    price=None,
    report=None,
  )
  return sweep, sweep.board(str(tmp_path))


def run(sweep, board, scripts):
  """Runs it, points for which there is no script as if all went well."""

  def command(point):
    if point.name in scripts:
      return shell(scripts[point.name], board.root)
    record = {"state": "done", "cell": point.cell, "bindings": {}, "result": {}}
    path = os.path.join(board.root, "records", f"{point.name}.json")
    script = 'mkdir -p "$(dirname "$2")"; echo "$1" > "$2.x"; mv "$2.x" "$2"'
    return shell(script, json.dumps(record), path)

  sweep.run(board, sweep.cells, command, lambda: None)


@pytest.mark.parametrize(
  "script, times, why",
  [
    ("kill -9 $$", 1, "was ended by SIGKILL"),
    ("kill -SEGV $$", 1, "was ended by SIGSEGV"),
    ("exit 3", 1, "ended with exit code 3"),
    ("exit 0", 3, "ended with exit code 0"),
  ],
)
def test_a_process_that_leaves_no_record_has_failed(
  tmp_path, script, times, why
):
  sweep, board = sweep_of(engines.LocalProcesses(at_once=2), tmp_path)
  run(sweep, board, {"A=1": f"echo begun; {script}"})
  record = board.records()["A=1"]
  assert record["state"] == FAILED and record["bindings"] == {"A": 1}
  log = board.log("A=1")
  assert record["reason"] == f"its process {why}; see {log}"
  assert open(log).read() == times * "begun\n"
  assert {board.state(f"A={i}") for i in (0, 2, 3)} == {"done"}


@pytest.mark.parametrize(
  "end, error",
  [
    ("exit 143", Preempted),
    ("kill -TERM $$", Preempted),
    ("kill -TERM $PPID; exec sleep 30", Preempted),
    ("kill -INT $PPID; exec sleep 30", KeyboardInterrupt),
  ],
)
def test_who_is_asked_to_end_asks_all_points_and_waits(tmp_path, end, error):
  sweep, board = sweep_of(engines.LocalProcesses(at_once=2), tmp_path)
  before = signal.getsignal(signal.SIGTERM)
  once_all_run = f"until grep up $1/logs/A=0.log; do sleep 0.02; done; {end}"
  # A first point that tells the sweep, too, as a machine that goes away does.
  slow = SLOW.replace("$1", "kill -TERM $PPID")
  with pytest.raises(error):
    run(sweep, board, {"A=0": slow, "A=1": once_all_run})
  assert open(board.log("A=0")).read() == "up\nsaved\n"
  assert {board.state(f"A={i}") for i in range(4)} == {PENDING}
  assert sweep.engine.wait(0) == {}
  assert signal.getsignal(signal.SIGTERM) == before


def test_other_threads_leave_the_signal_alone():
  before = signal.getsignal(signal.SIGTERM)

  def work():
    with engines.raising_on_sigterm() as asked:
      assert not asked and signal.getsignal(signal.SIGTERM) == before

  with futures.ThreadPoolExecutor() as pool:
    pool.submit(work).result()
