"""The command line of the tool; docs/tpu.md has examples.

python -m tools.tpu_check {setup,lower,compile,verify,table}
"""

from __future__ import annotations

import argparse
import os
import pathlib
import sys

# Programs are lowered on the CPU, whatever else this machine has.
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from nfnets_tf.errors import UserError  # noqa: E402
from nfnets_tf.scaling import compute  # noqa: E402
from nfnets_tf.train.dry_run import format_table  # noqa: E402
from tools.tpu_check import environment, records, slices, table  # noqa: E402

_OUTPUT = pathlib.Path("runs/tpu_check")
_STEPS = ("train", "eval")


def main(arguments: list[str]) -> int:
  """Runs a command; returns the exit code."""
  options = _parser().parse_args(arguments)
  try:
    return options.run(options) or 0
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="python -m tools.tpu_check", description=__doc__
  )
  commands = parser.add_subparsers(required=True)

  def add(run, text: str):
    name = run.__name__.strip("_")
    command = commands.add_parser(name, help=text, description=text)
    command.set_defaults(run=run)
    return command

  setup = add(_setup, "make the compiler's environment")
  lower = add(_lower, "lower a step of a run to StableHLO")
  compile_ = add(_compile, "compile a step of a run for a slice")
  verify = add(_verify, "run lowered steps and compare their results")
  for command in (lower, compile_):
    command.add_argument("--gin_file", action="append", required=True)
    command.add_argument("--gin_param", action="append", default=[])
    command.add_argument("--step", choices=_STEPS, default="train")
  lower.add_argument("--replicas", type=int, required=True)
  lower.add_argument("--output", required=True, help="path without its ending")
  compile_.add_argument("--slice", required=True, help="such as v4-16")
  compile_.add_argument(
    "--output",
    type=pathlib.Path,
    help=f"the record, {_OUTPUT}/RUN-SLICE.json by default",
  )
  compile_.add_argument(
    "--text", type=pathlib.Path, help="where to keep the optimized program"
  )
  table_ = add(_table, "print the table of docs/tpu.md")
  table_.add_argument(
    "--compile", action="store_true", help="first make the missing records"
  )
  table_.add_argument(
    "--write", action="store_true", help="update the table of the package"
  )
  verify.add_argument("cases", nargs="*", help="names of cases; none for all")
  for command in (setup, compile_, verify, table_):
    _add_environment(command)
  return parser


def _add_environment(command: argparse.ArgumentParser) -> None:
  command.add_argument(
    "--environment",
    type=lambda path: pathlib.Path(path).expanduser(),
    default=environment.DEFAULT.expanduser(),
    help=f"folder of the compiler's environment, {environment.DEFAULT} by"
    " default",
  )


def _setup(options) -> None:
  environment.setup(options.environment)
  print(f"The compiler's environment is in {options.environment}.")


def _lower(options) -> None:
  # Late: the other commands run under any TensorFlow.
  from tools.tpu_check import programs

  job = programs.load_job(options.gin_file, options.gin_param)
  program = programs.lower(job, replicas=options.replicas, step=options.step)
  program.write(options.output)
  reduces = program.facts["all_reduces"]
  print(
    f"Lowered {program.facts['graph_operations']:,} operations and"
    f" {reduces['count']} all-reduces of {reduces['bytes'] / 1e6:,.1f} MB to"
    f" {options.output}.stablehlo."
  )


def _compile(options) -> None:
  part = slices.find_slice(options.slice)
  flags = [f"--gin_file={path}" for path in options.gin_file]
  flags += [f"--gin_param={binding}" for binding in options.gin_param]
  record = records.make(
    flags,
    part,
    step=options.step,
    folder=options.environment,
    text=options.text,
  )
  stem = pathlib.Path(options.gin_file[0]).stem
  suffix = "" if options.step == "train" else f"-{options.step}"
  path = options.output or _OUTPUT / f"{stem}-{part.name}{suffix}.json"
  records.write(record, path)
  print(format_table(records.describe(record)))
  print(f"\nThe record is in {path}.")


def _verify(options) -> int:
  from tools.tpu_check import verify

  environment.check(options.environment)
  unknown = set(options.cases) - set(verify.CASES)
  if unknown:
    raise UserError(
      f"verify has no case {sorted(unknown)[0]!r}; expected some of"
      f" {', '.join(verify.CASES)}."
    )
  failed = 0
  for name in options.cases or verify.CASES:
    found = verify.verify(verify.CASES[name], options.environment)
    failed += not found.passed
    errors = ", ".join(f"{k} {e:.1e}" for k, e in found.errors.items())
    print(
      f"{'ok    ' if found.passed else 'FAILED'} {name}: differences of"
      f" {errors}; weights moved by {found.moved:.1e}; replicas"
      f" {'agree' if found.replicas_agree else 'differ'};"
      f" {found.all_reduces} all-reduces",
      flush=True,
    )
  return 1 if failed else 0


def _table(options) -> None:
  if options.compile:
    for study, probe in table.missing():
      record = records.make(
        study.flags(*probe),
        table.PROBE_SLICE,
        step="train",
        folder=options.environment,
      )
      path = study.record_path(*probe)
      records.write(record, path)
      print(f"Compiled {path}.", flush=True)
  made = [row for study in table.STUDIES for row in table.rows(study)]
  if not made:
    raise UserError(
      f"too few records are in {table.RECORDS}; make them with --compile, which"
      " takes hours."
    )
  print(table.format_rows(made))
  for study in table.STUDIES:
    if found := table.check(study):
      print(f"\n{table.format_checks(found)}")
  if options.write:
    count = table.write_programs(compute.PROGRAMS, compute.PROGRAM_COLUMNS)
    print(f"\n{compute.PROGRAMS} has {count} programs.")


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
