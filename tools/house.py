"""Measures the architecture: modules, lines, import floors, long functions.

  python tools/house.py [--list]

The floor of a module is the length of the longest chain of imports below it;
imports inside functions count, imports for type checking alone do not.
"""

from __future__ import annotations

import argparse
import ast
import pathlib

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = "nfnets_tf"
MAX_FUNCTION_LINES = 40
_TENSORS = ("tf.Tensor", "np.ndarray", "tf.RaggedTensor")
# A docstring states a shape as [batch, ...], a scalar, a vector, or in words.
_SHAPE_WORDS = ("[", "scalar", "same shape", "shape")


def module_name(path: pathlib.Path) -> str:
  """Returns the dotted name of a module of the package."""
  parts = path.relative_to(ROOT).with_suffix("").parts
  return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def read_modules() -> dict[str, ast.Module]:
  """Returns {dotted name: syntax tree} of every module of the package."""
  return {
    module_name(path): ast.parse(path.read_text())
    for path in sorted((ROOT / PACKAGE).rglob("*.py"))
  }


def import_graph(modules: dict[str, ast.Module]) -> dict[str, set[str]]:
  """Returns {module: the package's modules that it imports}."""
  return {
    name: _imports(tree, modules) - {name} for name, tree in modules.items()
  }


def _imports(tree: ast.Module, modules: dict[str, ast.Module]) -> set[str]:
  imported = set()
  for node in _runtime_nodes(tree):
    if isinstance(node, ast.Import):
      candidates = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.module:
      candidates = [
        full
        if (full := f"{node.module}.{alias.name}") in modules
        else node.module
        for alias in node.names
      ]
    else:
      continue
    imported.update(name for name in candidates if name in modules)
  return imported


def _runtime_nodes(tree: ast.AST):
  """Yields all nodes but those below `if TYPE_CHECKING:`."""
  for node in ast.iter_child_nodes(tree):
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
      continue
    yield node
    yield from _runtime_nodes(node)


def floors(graph: dict[str, set[str]]) -> dict[str, int]:
  """Returns {module: its floor}, 1 for a module that imports no other.

  Raises:
    ValueError: if modules import each other in a cycle.
  """
  known: dict[str, int] = {}

  def floor(name: str, above: tuple[str, ...]) -> int:
    if name in above:
      cycle = " -> ".join((*above[above.index(name) :], name))
      raise ValueError(f"import cycle: {cycle}")
    if name not in known:
      below = [floor(x, (*above, name)) for x in sorted(graph[name])]
      known[name] = 1 + max(below, default=0)
    return known[name]

  for name in graph:
    floor(name, ())
  return known


def single_importer_modules(graph: dict[str, set[str]]) -> list[str]:
  """Returns the modules that exactly one other module imports.

  Packages do not count: an `__init__` is not a file of its own concept.
  """
  packages = {name.rpartition(".")[0] for name in graph}
  importers = {name: 0 for name in graph if name not in packages}
  for imported in graph.values():
    for name in imported & importers.keys():
      importers[name] += 1
  return [name for name, count in importers.items() if count == 1]


def long_functions(modules: dict[str, ast.Module]) -> list[str]:
  """Returns "module:function (lines)" of functions over the limit.

  The docstring does not count; the signature does.
  """
  functions = []
  for name, tree in modules.items():
    for node in ast.walk(tree):
      if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        lines = node.end_lineno - node.lineno + 1
        if ast.get_docstring(node) is not None:
          first = node.body[0]
          lines -= first.end_lineno - first.lineno + 1
        if lines > MAX_FUNCTION_LINES:
          functions.append(f"{name}:{node.name} ({lines})")
  return functions


def tensor_functions(
  modules: dict[str, ast.Module],
) -> tuple[list[str], list[str]]:
  """Returns (all, those without a shape in their docstring) by name.

  Counted are public functions and methods whose signature names a tensor or an
  array; a shape that the docstring of the class gives counts as well.
  """
  every, silent = [], []
  for name, tree in modules.items():
    for owner, node in _public_functions(tree):
      hints = [node.returns, *(a.annotation for a in _arguments(node))]
      text = " ".join(ast.unparse(hint) for hint in hints if hint is not None)
      if not any(tensor in text for tensor in _TENSORS):
        continue
      title = f"{name}:{node.name}"
      every.append(title)
      docs = (ast.get_docstring(node) or "") + owner
      if not any(word in docs for word in _SHAPE_WORDS):
        silent.append(title)
  return every, silent


def _public_functions(tree: ast.Module):
  """Yields (docstring of the class, function) of what is public."""
  for node in tree.body:
    if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
      for method in node.body:
        if isinstance(method, ast.FunctionDef) and method.name[0] != "_":
          yield ast.get_docstring(node) or "", method
    elif isinstance(node, ast.FunctionDef) and node.name[0] != "_":
      yield "", node


def _arguments(node: ast.FunctionDef) -> list[ast.arg]:
  return [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]


def count_lines() -> int:
  """Returns the lines of all modules of the package."""
  paths = (ROOT / PACKAGE).rglob("*.py")
  return sum(len(path.read_text().splitlines()) for path in paths)


def main() -> None:
  """Prints the measures, and with --list the modules behind them."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--list", action="store_true", help="name the modules")
  arguments = parser.parse_args()
  modules = read_modules()
  graph = import_graph(modules)
  levels = floors(graph)
  single, long = single_importer_modules(graph), long_functions(modules)
  every, silent = tensor_functions(modules)
  stated = 1 - len(silent) / len(every)
  print(f"modules                    {len(modules)}")
  print(f"lines                      {count_lines():,}")
  print(f"floors                     {max(levels.values())}")
  print("import cycles              0")
  print(f"modules with one importer  {len(single)}")
  print(f"functions over {MAX_FUNCTION_LINES} lines    {len(long)}")
  print(f"tensor functions' shapes   {stated:.0%} of {len(every)}")
  if arguments.list:
    for title, names in (
      ("one importer", single),
      ("long functions", long),
      ("no shape", silent),
    ):
      print(f"\n{title}:", *names, sep="\n  ")
    print("\nfloors:")
    for name, level in sorted(levels.items(), key=lambda item: item[1]):
      print(f"  {level:2} {name}")


if __name__ == "__main__":
  main()
