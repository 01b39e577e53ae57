"""Prints the versions of all that is installed, as a table in Markdown.

  python tools/versions.py [NAME=PYTHON ...]

One column for each interpreter, such as "2.20=venv/bin/python"; without any,
the interpreter that runs this.
"""

import json
import subprocess
import sys

_LIST = """
import importlib.metadata, json, sys
versions = {
  d.metadata["Name"].lower().replace("_", "-"): d.version
  for d in importlib.metadata.distributions()
}
versions["python"] = ".".join(map(str, sys.version_info[:3]))
print(json.dumps(versions))
"""


def read_versions(python: str) -> dict[str, str]:
  """Returns {package: version} of an interpreter's environment."""
  done = subprocess.run(
    [python, "-c", _LIST], check=True, capture_output=True, text=True
  )
  return json.loads(done.stdout)


def main(arguments) -> None:
  """Prints the table of the interpreters that the arguments name."""
  columns = dict(a.split("=", 1) for a in arguments) or {
    "version": sys.executable
  }
  tables = [read_versions(python) for python in columns.values()]
  print("| package | " + " | ".join(columns) + " |")
  print("|---" * (1 + len(columns)) + "|")
  for name in sorted(set().union(*tables)):
    cells = (table.get(name, "") for table in tables)
    print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
  main(sys.argv[1:])
