"""Gin statements and their source locations, read by gin's own parser."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.util  # noqa: F401  gin 0.5.0 uses it without importing it
import inspect
import io
import itertools
import os
import pathlib
import tokenize
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any, Callable

from gin import config_parser
from nfnets_tf.config import error_messages, imports
from nfnets_tf.config.syntax_advice import advise
from nfnets_tf.errors import UserError
from nfnets_tf.fileio import decode_text

_PACKAGE = pathlib.Path(__file__).parents[1]
# Holds gin/: the package itself where it was installed from a wheel.
ROOT = _PACKAGE if (_PACKAGE / "gin").is_dir() else _PACKAGE.parent
GRID = "config.grid"  # its parameters are the axes of a sweep
DYNAMIC_REGISTRATION = "from __gin__ import dynamic_registration"


@dataclasses.dataclass(frozen=True, repr=False)
class Reference:
  """A gin reference, `@scope/module.Name` or `@module.Name()`.

  Attributes:
    path: the name with its scope.
    called: whether the value is what the reference returns.
  """

  path: str
  called: bool

  @property
  def scope(self) -> str:
    """Scope of the reference, "" without one."""
    return self.path.rpartition("/")[0]

  @property
  def selector(self) -> str:
    """The name without its scope."""
    return self.path.rpartition("/")[2]

  def __repr__(self) -> str:
    return f"@{self.path}{'()' if self.called else ''}"


@dataclasses.dataclass(frozen=True, repr=False)
class Macro:
  """The value of a gin macro, `%NAME`."""

  name: str

  def __repr__(self) -> str:
    return f"%{self.name}"


class _Delegate(config_parser.ParserDelegate):
  """Keeps references and macros as they are written."""

  def configurable_reference(self, scoped_configurable_name, evaluate):
    return Reference(scoped_configurable_name, evaluate)

  def macro(self, macro_name):
    return Macro(macro_name)


def _read(file: pathlib.Path, path: str) -> str:
  try:
    text = decode_text(file.read_bytes())
    return text.replace("\r\n", "\n").replace("\r", "\n")
  except UnicodeDecodeError as error:
    raise UserError(
      f"the gin file {path!r} is not in UTF-8 ({error}); save it in UTF-8."
    ) from error


def _parses(text: str) -> bool:
  try:
    return bool(list(config_parser.ConfigParser(text, _Delegate())))
  except (SyntaxError, ValueError, tokenize.TokenError):
    return False


class Bindings(dict):
  """Values by name; a name that is set again keeps the last value.

  A macro's name is in capitals, a parameter's is `scope/module.Name.parameter`.
  Values are Python values with `Reference` and `Macro` in them.

  Attributes:
    places: {name: "file, line N" or the flag that set it last}.
    imports: {name in selectors: gin's import statement}.
    includes: {file: the files that it includes directly}.
    folders: of the files, where modules are looked for.
  """

  def __init__(self):
    super().__init__()
    self.places: dict[str, str] = {}
    self.imports: dict[str, config_parser.ImportStatement] = {}
    self.includes: dict[str, list[str]] = {}
    self.folders: list[str] = []

  def set(self, name: str, value: Any, place: str) -> None:
    """Binds a name, in place of an earlier value."""
    self[name], self.places[name] = value, place

  def read_file(self, path: str, included_from: str = "") -> None:
    """Reads a gin file and all that it includes.

    Args:
      path: relative to the working directory or to the project.
      included_from: place of the include statement.

    Raises:
      UserError: if a file does not exist or cannot be parsed.
    """
    for file in (pathlib.Path(path), ROOT / path):
      if file.is_file():
        # The folder of the latest file comes first.
        self.folders.insert(0, os.path.abspath(file.parent))
        self.read_text(_read(file, path), path)
        return
    prefix = f"{included_from}: " if included_from else ""
    known = (ROOT / "gin").rglob("*.gin")
    hint = error_messages.nearest(
      path, [file.relative_to(ROOT).as_posix() for file in known]
    )
    raise UserError(f"{prefix}the gin file {path!r} does not exist{hint}")

  def read_text(self, text: str, source: str) -> None:
    """Reads gin statements.

    Args:
      text: any number of statements.
      source: the file or the flag that they come from.

    Raises:
      UserError: if they cannot be parsed.
    """
    self.folders += imports.noted_folders(text)
    stream = io.StringIO(text)
    stream.name = source  # where gin's parser looks for the file's name
    try:
      for statement in config_parser.ConfigParser(stream, _Delegate()):
        self._add(statement)
    except (SyntaxError, ValueError, tokenize.TokenError) as error:
      if isinstance(error, UserError):
        raise
      raise self._explain(error, source, text) from error

  def _explain(self, error: Exception, source: str, text: str) -> UserError:
    lines = text.splitlines()
    # What is not closed ends a line below the last one.
    number = min(error_messages.syntax_error_line(error), len(lines))
    line = lines[number - 1] if lines else ""
    advice = advise(line, _parses, self.imports, self)
    place = error_messages.describe_place(source, number)
    return error_messages.explain_syntax_error(place, line, advice)

  def _add(self, statement) -> None:
    source = statement.location.filename
    place = error_messages.describe_place(source, statement.location.line_num)
    if isinstance(statement, config_parser.IncludeStatement):
      path = statement.filename
      beside = os.path.join(os.path.dirname(source), path)
      if not os.path.isfile(path) and os.path.isfile(beside):
        path = beside
      self.includes.setdefault(source, []).append(path)
      self.read_file(path, place)
    elif isinstance(statement, config_parser.ImportStatement):
      self._import(statement, place)
    elif isinstance(statement, config_parser.BindingStatement):
      scope = f"{statement.scope}/" if statement.scope else ""
      parameter = f".{statement.arg_name}" if statement.arg_name else ""
      name = f"{scope}{statement.selector}{parameter}"
      if source.startswith("--"):
        self._import_used(name, statement.value, statement.location)
      self.set(name, statement.value, place)

  def _import_used(self, name: str, value: Any, location) -> None:
    """Imports the package's own modules that a flag names without doing so."""
    selectors = [split_parameter(name)[1]]
    selectors += [x.selector for x in leaves(value) if isinstance(x, Reference)]
    for alias in {selector.partition(".")[0] for selector in selectors}:
      if alias in self.imports or not alias:
        continue
      if module := imports.find_in_package(alias):
        statement = config_parser.ImportStatement(module, True, None, location)
        self._import(statement, location.filename)

  def _import(self, statement, place: str) -> None:
    if statement.module.startswith("__gin__."):
      return
    alias = statement.bound_name()
    earlier = self.imports.setdefault(alias, statement)
    if earlier.module != statement.module:
      raise UserError(
        f"{place}: {alias!r} is already {earlier.module}; import"
        f" {statement.module} under another name with 'as'."
      )
    folders = [*self.folders, os.getcwd()]
    imports.import_module(statement.module, place, list(dict.fromkeys(folders)))

  def resolve(self, selector: str) -> Callable:
    """Returns the class or function that a selector names.

    Raises:
      UserError: if its module is not imported or has no such member.
    """
    alias, *members = selector.split(".")
    if alias not in self.imports:
      module = imports.find_in_package(alias)
      raise error_messages.unknown_module(selector, self.imports, module)
    statement = self.imports[alias]
    plain = not statement.is_from and not statement.alias
    target = importlib.import_module(alias if plain else statement.module)
    for member in members:
      if not hasattr(target, member):
        prefix = selector[: selector.rindex(member)]
        hint = error_messages.nearest(
          selector, [prefix + name for name in vars(target) if name[0] != "_"]
        )
        raise UserError(f"there is no {selector!r}{hint}")
      target = getattr(target, member)
    return target

  def parameters(self, selector: str) -> dict[str, inspect.Parameter]:
    """Returns {name: parameter} of the class or function of a selector.

    Raises:
      UserError: as `resolve`.
    """
    target = self.resolve(selector)
    # Up to Python 3.9 the signature of a class is that of its `__new__`, which
    # is (*args, **kwargs) for Keras objects.
    is_class = inspect.isclass(target)
    if is_class and target.__init__ is not object.__init__:
      target = functools.partial(target.__init__, None)
    variadic = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
    parameters = inspect.signature(target).parameters
    return {n: p for n, p in parameters.items() if p.kind not in variadic}

  def value(self, name: str) -> tuple[str, Any]:
    """Returns the value of a name with macros replaced by theirs.

    Returns:
      The macro that the value is given to, or `name`; and the value.
    """
    origin = name
    for _ in self:  # a macro may refer to another one, or to itself
      if isinstance(self[origin], Macro) and self[origin].name in self:
        origin = self[origin].name
    return origin, self._expand(self[origin], depth=len(self))

  def _expand(self, value: Any, depth: int) -> Any:
    if isinstance(value, Macro) and value.name in self and depth:
      return self._expand(self[value.name], depth - 1)
    if isinstance(value, dict):
      items = value.items()
      return {key: self._expand(item, depth) for key, item in items}
    if isinstance(value, (list, tuple)):
      return type(value)(self._expand(item, depth) for item in value)
    return value

  def dependencies(self, name: str) -> set[str]:
    """Returns `name` and the names of all that its value is built of."""
    visited, pending = set(), [name]
    while pending:
      current = pending.pop()
      if current in visited or current not in self:
        continue
      visited.add(current)
      for leaf in leaves(self[current]):
        if isinstance(leaf, Macro):
          pending.append(leaf.name)
        elif isinstance(leaf, Reference):
          pending += [
            name for name in self if split_parameter(name)[1] == leaf.selector
          ]
    return visited

  def in_package(self, package: str) -> set[str]:
    """Returns the names that bind a parameter of something in a package."""
    return {
      name
      for name in self
      if (alias := split_parameter(name)[1].split(".")[0]) in self.imports
      and self.imports[alias].module.startswith(f"{package}.")
    }

  def without(self, names: Set[str]) -> Bindings:
    """Returns the other bindings, without imports that only the names need."""
    kept = Bindings()
    kept.includes = self.includes
    for name in self:
      if name not in names:
        kept.set(name, self[name], self.places[name])
    used = kept._aliases()
    unused = self._aliases() - used
    kept.imports = {a: s for a, s in self.imports.items() if a not in unused}
    return kept

  def _aliases(self) -> set[str]:
    """Returns the names of the modules that bindings and references use."""
    selectors = {split_parameter(name)[1] for name in self if "." in name}
    for value in self.values():
      selectors |= {
        x.selector for x in leaves(value) if isinstance(x, Reference)
      }
    return {selector.split(".")[0] for selector in selectors}

  def to_text(self) -> str:
    """Returns gin statements that read back to the same bindings."""
    statements = sorted(s.format() for s in self.imports.values())
    modules = [statement.module for statement in self.imports.values()]
    lines = [DYNAMIC_REGISTRATION, *statements, *imports.notes(modules)]
    # Macros first; then a paragraph for each scoped selector.
    names = sorted(self, key=lambda name: (not is_macro(name), name))
    for _, group in itertools.groupby(
      names, key=lambda x: x.rpartition(".")[0]
    ):
      lines += ["", *(f"{name} = {self[name]!r}" for name in group)]
    return "\n".join(lines) + "\n"

  def to_strings(self) -> dict[str, str]:
    """Returns {name: its value as gin text}."""
    return {name: repr(value) for name, value in self.items()}


def parse(
  gin_files: Sequence[str],
  gin_params: Sequence[str] = (),
  base: tuple[str, str] | None = None,
) -> Bindings:
  """Reads gin files, then single bindings; later ones win.

  Args:
    gin_files: paths.
    gin_params: statements such as "EPOCHS = 2".
    base: (path, text) to read before the files, or None.

  Raises:
    UserError: if a file does not exist or something cannot be parsed.
  """
  bindings = Bindings()
  if base is not None:
    bindings.read_text(base[1], base[0])
  for path in gin_files:
    bindings.read_file(path)
  for param in gin_params:
    bindings.read_text(param, f"--gin_param={param!r}")
  return bindings


def find_changes(
  before: Mapping[str, str], now: Mapping[str, str]
) -> list[tuple[str, str | None, str | None]]:
  """Returns (name, value before, value now) where two configurations differ."""
  names = [*now, *(name for name in before if name not in now)]
  return [
    (name, before.get(name), now.get(name))
    for name in names
    if before.get(name) != now.get(name)
  ]


def is_macro(name: str) -> bool:
  """Returns whether a name is a macro's rather than a parameter's."""
  return "." not in name


def split_parameter(name: str) -> tuple[str, str, str]:
  """Splits "scope/module.Name.parameter" into its three parts."""
  scope, _, path = name.rpartition("/")
  selector, _, parameter = path.rpartition(".")
  return scope, selector, parameter


def leaves(value: Any) -> Iterator[Any]:
  """Yields the plain values, references and macros within a value."""
  if isinstance(value, Mapping):
    for key, item in value.items():
      yield from leaves(key)
      yield from leaves(item)
  elif isinstance(value, (list, tuple)):
    for item in value:
      yield from leaves(item)
  else:
    yield value
