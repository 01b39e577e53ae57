"""The single entry point: flags select files, gin configures the job.

  python -m nfnets_tf.launch --gin_file=gin/quickstart.gin

In a clone, `python launch/train.py` does the same.

Exit codes: 0 finished, 1 failed, 2 invalid input, 130 interrupted, 143
terminated by SIGTERM with a checkpoint. After 1, 130 and 143 the same command
resumes.
"""

from __future__ import annotations

import ast
import os
import sys
import traceback

from absl import flags

# Before TensorFlow is imported, so that its start-up messages go to the log.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "0")

_GIN_FILE = flags.DEFINE_multi_string(
  "gin_file", [], "The gin file of the run, then overlays; later ones win."
)
_GIN_PARAM = flags.DEFINE_multi_string(
  "gin_param", [], 'Single bindings, e.g. "EPOCHS = 2".'
)
_WORKDIR = flags.DEFINE_string(
  "workdir",
  None,
  "Work directory of the run; defaults to runs/NAME_OF_THE_GIN_FILE.",
)
_DRY_RUN = flags.DEFINE_bool(
  "dry_run", False, "Print what would run and exit without allocating anything."
)
_POINTS = flags.DEFINE_string(
  "points",
  None,
  "Points of a sweep to run: left (the default), failed, list, plan, a number"
  " K, the K-th of N shares K/N, or the name of a point.",
)
_TRACEBACK = flags.DEFINE_bool(
  "traceback", False, "Also print the traceback of an error."
)


def main(argv: list[str]) -> int:
  """Runs the job that the flags name; returns the exit code."""
  try:
    rest = flags.FLAGS(argv)[1:]
  except flags.Error as error:
    hint = _binding_flag(argv) or "see --helpfull."
    print(f"error: {str(error).rstrip('.')}; {hint}", file=sys.stderr)
    return 2
  if rest:
    hint = _binding_of(rest) or f"did you mean --gin_file={rest[0]}?"
    print(f"error: {rest[0]!r} is not a flag; {hint}", file=sys.stderr)
    return 2
  from nfnets_tf.train.terminal import QuietScreen

  quiet = QuietScreen()
  try:
    return _launch(quiet)
  except KeyboardInterrupt:
    print(
      "\nInterrupted; rerun the same command to resume from the last"
      " checkpoint.",
      file=quiet.screen,
    )
    return 130
  except Exception as error:
    return _report(error, quiet)


def _binding_flag(argv: list[str]) -> str | None:
  """Returns the --gin_param that was meant by an unknown flag, or None."""
  for argument in argv[1:]:
    name, _, value = argument.lstrip("-").partition("=")
    if argument[:1] != "-" or name in flags.FLAGS:
      continue
    if name in ("gin_binding", "gin_bindings", "gin_params"):
      name, _, value = value.partition("=")
    elif name.startswith("gin."):
      name = name[len("gin.") :]
    elif not name.isupper() and "." not in name:
      return None
    return f"did you mean {_as_flag(name, value)}?"
  return None


def _binding_of(rest: list[str]) -> str | None:
  """Returns the --gin_param that was meant by words without a flag, or None."""
  ends = [i for i, word in enumerate(rest) if word[:2] == "--"]
  statement = " ".join(rest[: ends[0] if ends else None])
  if statement.startswith("=") and _GIN_PARAM.value:
    statement = f"{_GIN_PARAM.value[-1]} {statement}"
  name, sign, value = statement.partition("=")
  if not sign:
    return None
  return f"a binding is one word for the shell: {_as_flag(name, value)}"


def _as_flag(name: str, value: str) -> str:
  value = value.strip()
  try:
    ast.literal_eval(value)
  except (ValueError, SyntaxError):
    if value[:1] not in ("@", "%"):  # the shell removed the quotes
      value = repr(value.strip("'\""))
  return f'--gin_param="{name.strip()} = {value}"'


def _launch(quiet) -> int:
  from nfnets_tf.progress import activity

  with activity("Loading TensorFlow and the configuration"):
    from nfnets_tf.config import Configuration
    from nfnets_tf.jobs.job import RunContext
    from nfnets_tf.train.run_dir import RunDir

    configuration = Configuration(_GIN_FILE.value, _GIN_PARAM.value)
  # No shell expands "~" within --workdir=~/runs.
  workdir = os.path.expanduser(_WORKDIR.value or configuration.workdir)
  RunDir(workdir).check_path()
  if configuration.is_sweep or _POINTS.value is not None:
    return _launch_sweep(quiet, configuration, workdir)
  if _DRY_RUN.value:
    with activity("Planning the job"):
      plan = configuration.build_job().plan()
    print(plan)
    print("\nBindings that differ from the run's base:")
    print("\n".join(f"  {line}" for line in configuration.differences()))
    quiet.discard_log()
    return 0
  RunDir(workdir).check_layout()  # before its configuration is read
  if configuration.run_folder is None:
    configuration.check_workdir(os.path.join(workdir, "config.gin"))
  with activity("Preparing the job"):
    job = configuration.build_job()

  with activity(f"Running {_GIN_FILE.value[0]}"):
    summary = job.run(
      RunContext(
        workdir,
        configuration.text,
        quiet.terminal,
        on_start=lambda: _move_log(quiet, workdir),
      )
    )
  quiet.discard_log()
  print(summary)
  return 0


def _launch_sweep(quiet, configuration, workdir: str) -> int:
  from nfnets_tf.jobs.sweep import SweepJob
  from nfnets_tf.progress import activity

  command = [
    sys.executable,
    "-m",
    "nfnets_tf.launch",
    *(f"--gin_file={path}" for path in _GIN_FILE.value),
    *(f"--gin_param={param}" for param in _GIN_PARAM.value),
    f"--workdir={workdir}",
  ]
  with activity(f"Running {_GIN_FILE.value[0]}"):
    sweep = SweepJob(configuration, workdir, command)
    if _DRY_RUN.value:
      summary = sweep.plan()
    else:
      summary = sweep.run(
        _POINTS.value or "left",
        terminal=quiet.terminal,
        on_start=lambda folder: _move_log(quiet, folder),
      )
  quiet.discard_log()
  print(summary)
  return 0


def _move_log(quiet, folder: str) -> None:
  if "://" not in folder:
    quiet.move_log(os.path.join(folder, "libraries.log"))


def _report(error: Exception, quiet) -> int:
  from nfnets_tf import errors

  lines = map(str.strip, str(error).splitlines())
  first = next(filter(None, lines), "no message")
  if isinstance(error, errors.NothingToDo):
    print(first, file=quiet.screen)
    quiet.discard_log()
    return 0
  if isinstance(error, errors.Preempted):
    print(
      "Terminated by SIGTERM; checkpoint saved. Rerun the same command to"
      " resume.",
      file=quiet.screen,
    )
    return 143
  trace = traceback.format_exc()
  print(trace, file=sys.stderr)  # the log
  if _TRACEBACK.value:
    print(trace, file=quiet.screen)
  if isinstance(error, errors.UserError):
    print(f"error: {first}", file=quiet.screen)
    quiet.discard_log()
    return 2
  if not isinstance(error, errors.RunError):
    first = f"{type(error).__name__}: {first}"
  print(f"error: {first} (full traceback in {quiet.log})", file=quiet.screen)
  return 1


def run() -> None:
  """Runs `main` on the command line's arguments and exits with its code."""
  code = main(sys.argv)
  if code or _DRY_RUN.value:
    # Library threads that still run, or wait for another machine, would abort
    # the process or keep it alive; freeing planned networks takes seconds.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
  run()
