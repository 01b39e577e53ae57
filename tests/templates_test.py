"""The templates for many machines, run with fake programs."""

import fcntl
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest
import yaml

from nfnets_tf.config import Configuration

ROOT = pathlib.Path(__file__).parents[1]
SLURM = ROOT / "launch/templates/slurm.sbatch"
TPU = ROOT / "launch/templates/tpu_pod.sh"
KUBERNETES = ROOT / "launch/templates/kubernetes.yaml"
SERVICE, JOB = yaml.safe_load_all(KUBERNETES.read_text())
PODS = JOB["spec"]["template"]
(CONTAINER,) = PODS["spec"]["containers"]
(SHELL,) = CONTAINER["args"]
PAGE = (ROOT / "docs/many_machines.md").read_text()
NAMES = "TPU_NAME ZONE REPOSITORY REVISION SLURM_JOB_NODELIST".split()
GIVEN = {name: name.lower() for name in NAMES} | {"SLURM_JOB_ID": "123456"}
GIVEN |= {"DATA_DIR": "gs://my shards", "WORKDIR": "gs://run"}
BASH = ["timeout", "60", "bash"]
PROGRAMS = "python python3 pip srun scontrol gcloud curl git sleep".split()
# Replaces each program: logs its call and fakes its effect. The trainer exits
# with `codes` and the TPU has `states`, in turn; the last one repeats.
FAKE = f"""#!{sys.executable} -IS
import json, os, pathlib, shutil, subprocess, sys
name, args, env = pathlib.Path(sys.argv[0]).name, sys.argv[1:], dict(os.environ)
folder, codes = pathlib.Path(env["FOLDER"]), []
call = dict(name=name, args=args, env=env, pid=os.getpid())
call["config"] = json.loads(env.get("TF_CONFIG", "null"))
with open(folder / "log", "a") as file: file.write(json.dumps(call) + "\\n")
def take(kind):
  first, *rest = (folder / kind).read_text().split()
  if rest:
    (folder / kind).write_text(" ".join(rest))
  return first
if name == "python" and env.get("TPU_WORKER_ID", "0") == "0":
  codes = [int(take("codes"))]
elif name == "srun":
  command = args[next(i for i, arg in enumerate(args) if arg[:2] != "--"):]
  for env["SLURM_PROCID"] in "012":
    codes.append(subprocess.run(command, env=env).returncode)
elif name == "gcloud" and "ssh" in args:
  (command,) = [arg[10:] for arg in args if arg[:10] == "--command="]
  for env["WORKER"] in "01":
    env["HOME"] = str(folder / ("home" + env["WORKER"]))
    os.makedirs(env["HOME"], exist_ok=True)
    codes.append(subprocess.run(["bash", "-c", command], env=env).returncode)
elif name == "gcloud": print(take("states"))
elif args[:2] == ["show", "hostnames"]: print("node7\\nnode8\\nnode9")
elif args[0] == "clone": shutil.copytree(folder / "clone", args[2], True)
elif name == "curl" and "Metadata-Flavor: Google" in args: print(env["WORKER"])
sys.exit(max(codes, default=0))
"""


@pytest.fixture
def run_with_fakes(tmp_path):
  """Runs bash with fake programs and returns their calls."""
  clone, log = tmp_path / "clone", tmp_path / "log"
  (clone / ".venv/bin").mkdir(parents=True)
  (tmp_path / "fake").write_text(FAKE)
  (tmp_path / "fake").chmod(0o755)
  for name in PROGRAMS:
    (clone / ".venv/bin" / name).symlink_to(tmp_path / "fake")

  def run(*command, codes="0", states="READY", **given):
    for name, text in {"codes": codes, "states": states, "log": ""}.items():
      (tmp_path / name).write_text(text)
    env = {**os.environ, **GIVEN, "FOLDER": str(tmp_path), **given}
    env["PATH"] = f"{clone}/.venv/bin:{env['PATH']}"
    done = subprocess.run(
      [*BASH, *command], capture_output=True, text=True, env=env, cwd=clone
    )
    done.calls = [json.loads(line) for line in log.read_text().splitlines()]
    for name in PROGRAMS:  # done.python and so on
      setattr(done, name, [c for c in done.calls if c["name"] == name])
    return done

  return run


def configs(*hosts):
  """Returns the TF_CONFIG of all workers."""
  tasks = [{"type": "worker", "index": i} for i in range(len(hosts))]
  return [{"cluster": {"worker": [*hosts]}, "task": task} for task in tasks]


def statements(call):
  """Returns the bindings of the configuration that a fake run was given."""
  text = "\n".join(call["args"])
  form = r"launch/train\.py(\n--gin_(file|param)=.+)+\n--workdir=.+"
  assert re.fullmatch(form, text)
  kinds = [f"--gin_{kind}=(.+)" for kind in ("file", "param")]
  return Configuration(*(re.findall(kind, text) for kind in kinds)).statements


def test_shell_code_parses():
  for text in (SLURM.read_text(), TPU.read_text(), SHELL):
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)


REFUSED = [(SLURM, "", name, "") for name in ("DATA_DIR", "WORKDIR")]
REFUSED += [(TPU, "setup", n, "") for n in ("TPU_NAME", "ZONE", "REPOSITORY")]
REFUSED += [(TPU, "train", n, "") for n in ("REVISION", "DATA_DIR", "WORKDIR")]
REFUSED += [(TPU, "train", name, "/tmp") for name in ("DATA_DIR", "WORKDIR")]


@pytest.mark.parametrize("path, word, name, value", REFUSED)
def test_missing_or_invalid_variables_are_refused_first(
  path, word, name, value, run_with_fakes
):
  done = run_with_fakes(path, word, **{name: value})
  assert done.returncode != 0 and done.calls == []
  assert ("must begin" if value else f"{name}: is not set;") in done.stderr


def test_slurm_builds_tf_config(run_with_fakes):
  (function,) = re.findall(r"(?ms)^tf_config\(\) {$.*?^}$", SLURM.read_text())
  for index, hosts in [(0, ["a"]), (1, ["a", "b.c"]), (10, [*"abcdefghijk"])]:
    call = f"{function}\ntf_config {index} 2222 {' '.join(hosts)}"
    want = configs(*(f"{host}:2222" for host in hosts))[index]
    assert json.loads(run_with_fakes("-euc", call).stdout) == want


def test_slurm_starts_a_worker_on_each_node(run_with_fakes):
  done = run_with_fakes(SLURM)
  hosts = [f"node{i}:23456" for i in (7, 8, 9)]
  assert [call["config"] for call in done.python] == configs(*hosts)
  for bindings in map(statements, done.python):
    assert bindings["STRATEGY"] == "@distribution.multi_worker"
    assert bindings["DATA_DIR"] == "'gs://my shards'"
  assert "--kill-on-bad-exit=0" in done.srun[0]["args"]
  head = SLURM.read_text().split("set -euo")[0]  # where sbatch looks
  options = set(re.findall(r"(?m)^#SBATCH (\S+)", head))
  assert {"--ntasks-per-node=1", "--requeue", "--open-mode=append"} < options
  assert "--signal=SIGTERM@120" in options
  assert all(line.startswith("#") for line in head.splitlines())


@pytest.mark.parametrize("codes", ["0", "1", "2", "143", "0 143 1"])
def test_slurm_requeues_preempted_runs(codes, run_with_fakes):
  done = run_with_fakes(SLURM, codes=codes)
  assert done.returncode == max(map(int, codes.split()))
  requeued = [["requeue", "123456"]] * ("143" in codes)
  assert [call["args"] for call in done.scontrol][1:] == requeued


def test_kubernetes_pods_are_the_workers(run_with_fakes):
  job, service, pod = JOB["spec"], SERVICE["spec"], PODS["spec"]
  assert (SERVICE["apiVersion"], SERVICE["kind"]) == ("v1", "Service")
  assert (JOB["apiVersion"], JOB["kind"]) == ("batch/v1", "Job")
  assert service["clusterIP"] == "None"  # headless
  assert service["publishNotReadyAddresses"] is True
  assert service["selector"].items() <= PODS["metadata"]["labels"].items()
  assert pod["subdomain"] == SERVICE["metadata"]["name"]
  assert job["completionMode"] == "Indexed"
  assert job["completions"] == job["parallelism"] > 1
  port = service["ports"][0]["port"]
  assert port == CONTAINER["ports"][0]["containerPort"]
  assert not re.search(r"\$\$|\$\(\w+\)", SHELL)  # Kubernetes would replace it
  name, indices = JOB["metadata"]["name"], range(job["completions"])
  hosts = [f"{name}-{i}.{pod['subdomain']}:{port}" for i in indices]
  env = {pair["name"]: pair["value"] for pair in CONTAINER["env"]}
  for index, want in zip(indices, configs(*hosts)):
    env["JOB_COMPLETION_INDEX"] = str(index)
    done = run_with_fakes(
      *CONTAINER["command"][1:], f"echo $$\n{SHELL}\n:", **env
    )
    (call,) = done.python
    assert call["pid"] == int(done.stdout)  # so that SIGTERM reaches it
    assert call["config"] == want
  assert statements(call)["STRATEGY"] == "@distribution.multi_worker"
  claims = [v["name"] for v in pod["volumes"] if "persistentVolumeClaim" in v]
  mounts = {m["name"]: m["mountPath"] for m in CONTAINER["volumeMounts"]}
  assert call["args"][-1].startswith(f"--workdir={mounts[claims[0]]}/")


def test_kubernetes_handles_exit_codes():
  exits = {"containerName": CONTAINER["name"], "operator": "In"}
  assert JOB["spec"]["podFailurePolicy"]["rules"] == [
    {"action": "FailJob", "onExitCodes": {**exits, "values": [2]}},
    {"action": "Ignore", "onExitCodes": {**exits, "values": [143]}},
    {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]},
  ]
  assert JOB["spec"]["backoffLimit"] > JOB["spec"]["completions"]
  assert PODS["spec"]["restartPolicy"] == "Never"  # or there are no rules
  assert PODS["spec"]["terminationGracePeriodSeconds"] == 120


def test_tpu_pod_setup_is_idempotent(run_with_fakes):
  first, second = run_with_fakes(TPU, "setup"), run_with_fakes(TPU, "setup")
  assert first.returncode == second.returncode == 0
  steps = ["python3", "git", "git", "git", "python3", "pip"]
  assert [call["name"] for call in first.calls] == ["gcloud", *steps, *steps]
  clone, _, checkout, *_ = first.git
  assert (clone["args"][1], checkout["args"][-1]) == ("repository", "revision")
  assert "clone" not in [call["args"][0] for call in second.git]


def test_tpu_image_and_python_have_the_same_tensorflow(
  run_with_fakes, tmp_path
):
  pins = (ROOT / "requirements/tensorflow-2.15.txt").read_text()
  (version,) = re.findall(r"(?m)^tensorflow==(\S+)$", pins)
  assert re.findall(r"--version=(\S+)", TPU.read_text()) == [
    f"tpu-vm-tf-{version}-pod-pjrt"
  ]
  assert f"`tpu-vm-tf-{version}-pod-pjrt`" in PAGE
  newer = tmp_path / "newer"
  newer.write_text("#!/bin/sh\nexit 1\n")  # as of Python 3.12
  newer.chmod(0o755)
  done = run_with_fakes(TPU, "setup", PYTHON=str(newer))
  assert done.returncode == 2 and not done.git
  assert f"PYTHON = {newer} is" in done.stderr and "3.9 to 3.11" in done.stderr


def test_all_tpu_hosts_run_the_same_command(run_with_fakes):
  run_with_fakes(TPU, "setup")
  done = run_with_fakes(TPU, "train")
  ssh = ["compute", "tpus", "tpu-vm", "ssh", "tpu_name", "--zone=zone"]
  assert done.gcloud[0]["args"][:-1] == [*ssh, "--worker=all"]
  for call, worker in zip(done.python, "01"):
    names = ("TPU_NAME", "TPU_LOAD_LIBRARY", "TPU_WORKER_ID")
    assert [call["env"][name] for name in names] == ["tpu_name", "0", worker]
  bindings, other = map(statements, done.python)
  assert bindings == other
  assert bindings["STRATEGY"] == "@distribution.tpu"
  assert bindings["distribution.tpu.address"] == "'tpu_name'"
  assert bindings["DATA_DIR"] == "'gs://my shards'"


ENDS = [(code, "READY", 1) for code in ("0", "1", "2", "255")]
ENDS += [("255 0", "PREEMPTED PREEMPTED CREATING READY", 2)]
ENDS += [("1 0", "PREEMPTED CREATING READY", 2)]  # it lost a host first
ENDS += [("143 143 1", "PREEMPTED READY CREATING READY", 3)]


@pytest.mark.parametrize("codes, states, times", ENDS)
def test_tpu_pod_resumes_after_preemption(codes, states, times, run_with_fakes):
  run_with_fakes(TPU, "setup")
  done = run_with_fakes(TPU, "train", codes=codes, states=states)
  assert done.returncode == int(codes.split()[-1])
  assert len(done.python) == 2 * times  # on each host
  assert len(done.pip) == 2 * (times - 1)


def test_tpu_host_runs_one_command_at_a_time(run_with_fakes, tmp_path):
  run_with_fakes(TPU, "setup")
  with open(tmp_path / "home0/nfnets_tf.lock", "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    done = run_with_fakes(TPU, "train")
  assert (
    done.returncode == 1 and "A run is in progress (worker 0)" in done.stderr
  )


def test_page_starts_two_workers_and_names_existing_files(run_with_fakes):
  (block,) = re.findall(r"(?ms)^```\n(.*?)^```$", PAGE)
  calls = sorted(
    run_with_fakes("-euc", block).python, key=lambda c: str(c["config"])
  )
  want = configs("localhost:29500", "localhost:29501")
  assert [call["config"] for call in calls] == want
  assert statements(calls[0])["STRATEGY"] == "@distribution.auto"
  names = re.findall(r"`((?:launch|tests)/[\w./]+)`", PAGE)
  names += [f"docs/{page}" for page in re.findall(r"\]\((\w+\.md)\)", PAGE)]
  files = {ROOT / name for name in names}
  assert {SLURM, TPU, KUBERNETES} < files and all(f.is_file() for f in files)
