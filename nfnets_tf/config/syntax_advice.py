"""Advice on gin statements that cannot be parsed: what is wrong, the remedy.

Each rule proposes another statement; advice is given only if that one parses.
"""

from __future__ import annotations

import ast
import operator
import re
import shlex
import unicodedata
from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple

_STATEMENT = re.compile(
  r"(?P<junk>(?:--?|[%@$])?)['\"]?(?P<name>[A-Za-z_][\w./]*)"
  r"['\"]?\s*(?P<sign>=+|:=|=>|:(?!/)|\s|$)\s*(?P<value>.*)"
)
_QUOTES = str.maketrans("“”„«»‘’‚`´", "\"\"\"\"\"'''''")
_MINUS = str.maketrans("\u2012\u2013\u2014\u2212", "----")
_CONSTANTS = {
  **dict.fromkeys(("true", "yes", "on"), "True"),
  **dict.fromkeys(("false", "no", "off"), "False"),
  **dict.fromkeys(("none", "null", "nil", "undefined", "~"), "None"),
}
_NOT_FINITE = re.compile(r"[-+]?(nan|inf|infinity)", re.IGNORECASE)
_NUMBER = re.compile(r"[-+]?(\d[\d_,]*\.?\d*|\.\d+)(e[-+]?\d+)?", re.IGNORECASE)
_SUFFIXES = {"": 1, "f": 1, "%": 0.01, "k": 10**3, "m": 10**6, "b": 10**9}
_OPERATORS = {
  ast.Add: operator.add,
  ast.Sub: operator.sub,
  ast.Mult: operator.mul,
  ast.Div: operator.truediv,
  ast.Pow: operator.pow,
  ast.UAdd: operator.pos,
  ast.USub: operator.neg,
}
# Python that is no literal, and what is a number rather than a string.
_EXPRESSION = re.compile(
  r"\b(lambda|if|else|for|in|not|and|or)\b|[\w)\]]\(|\bf['\"]|\s[-+*/]\s"
)
_LIKE_A_NUMBER = re.compile(r"[-+]?[\d.][\d_.,\s*/]*[A-Za-z]{0,2}")
_HOME = re.compile(r"\$(HOME|{HOME})\b")
_BARE_WORD = re.compile(r"'[^']*'|\"[^\"]*\"|[%@]?[A-Za-z~/.][\w./~+-]*")
_SECOND = re.compile(r"(?<=[\w'\")\]}])[\s,;]+([A-Za-z_][\w./]*\s*=(?!=).*)")
_CALL = re.compile(r"([A-Za-z_]\w*)(\.\w+)+(\(\))?")


class Advice(NamedTuple):
  """What is wrong with a statement.

  Attributes:
    problem: a clause, such as "a string wants quotes".
    statement: what to write instead.
  """

  problem: str
  statement: str


def advise(
  line: str,
  parses: Callable[[str], bool],
  modules: Collection[str],
  macros: Collection[str],
) -> Advice | None:
  """Returns advice on a statement, None if nothing comes close to it.

  Args:
    line: the statement.
    parses: returns whether gin's parser accepts a statement.
    modules: names that are imported.
    macros: names that are set.
  """
  line = line.strip()
  if parses(line):
    problem = "a bracket is open above it, or it is indented unlike its block"
    return Advice(f"by itself it is right, so {problem}", line)
  plain = unicodedata.normalize("NFKC", line).translate(_MINUS)
  if plain != line and parses(plain):
    return Advice("it has signs that only look like - or =", plain)
  for problem, statement in _proposals(line, modules, macros):
    if statement.endswith("...") or statement != line and parses(statement):
      return Advice(problem, statement)
  return None


def as_flag(statement: str) -> str:
  """Returns the flag that gives a statement, quoted for a shell."""
  if re.search(r"[\"$`!]|\\[\\\n]|\\$", statement):
    return f"--gin_param={shlex.quote(statement)}"
  return f'--gin_param="{statement}"'


def _proposals(line, modules, macros) -> Iterator[tuple[str, str]]:
  include = re.fullmatch(r"include\s+([^'\"\s]+)", line)
  if include:
    yield "the path of a file wants quotes", f"include '{include[1]}'"
  if command := re.match(r"(set|export|let|var|const)\s+(?=[A-Za-z_%])", line):
    rest = line[command.end() :]
    yield f"gin has no {command[1]!r}", rest
    for problem, statement in _proposals(rest, modules, macros):
      yield f"gin has no {command[1]!r}, and {problem}", statement
    return
  if second := _SECOND.search(line):
    first = line[: second.start()]
    yield "a line holds one binding, and so does a --gin_param", first
    for problem, statement in _proposals(first, modules, macros):
      yield f"a line holds one binding, and {problem}", statement
  match = _STATEMENT.fullmatch(line)
  if match is None or match["name"] in ("import", "from", "include"):
    return
  name, sign, value = match["name"], match["sign"], match["value"]
  problems = []
  if match["junk"] or line[:1] in "'\"":
    problems.append("a name has nothing around it")
  if sign != "=":
    problems.append("a name and its value have '=' between them")
  head = f"{name} ="
  if problems:
    yield " and ".join(problems), f"{head} {value}"
  if re.match(r"[-+*/|]=", value):
    return
  if not value:
    yield "a value is missing", f"{head} ..."
    return
  for problem, better in _values(value, modules, macros):
    yield " and ".join([*problems, problem]), f"{head} {better}"


def _values(value, modules, macros) -> Iterator[tuple[str, str]]:
  """Yields (problem, better value)."""
  if (plain := value.translate(_QUOTES)) != value:
    yield "quotes are ' or \"", plain
    yield "quotes are ' or \", the same on both sides", _requoted(plain)
  bare = value.split(" #")[0].strip() if value[:1] not in "'\"" else value
  ended = re.sub(r"\s*([,;]|(?<=\s)//.*)$", "", bare)
  if ended != bare and ended:
    yield "nothing follows a value", ended
  if value[:1] in "'\"":
    yield from _broken_strings(value)
    return
  if bare.lower() in _CONSTANTS:
    constant = _CONSTANTS[bare.lower()]
    yield f"{bare} is called {constant} here", constant
  if (number := _as_number(bare)) is not None:
    yield "a number has digits, a point and an exponent only", number
  if bare in macros:
    yield "the value of a macro wants a %", f"%{bare}"
  call = _CALL.fullmatch(bare)
  if call and (call[1] in modules or call[3]):
    yield "a class or function wants an @", f"@{bare}"
  if bare[:1] in "[({":
    yield from _collections(bare)
  elif bare[:1] == "@":
    yield "a bracket is not closed", f"{bare})"
  elif _is_string(ended):
    yield "a string wants quotes", _quoted(_HOME.sub("~", ended))


def _is_string(value: str) -> bool:
  """Returns whether a text was probably meant as a string."""
  return bool(value) and not (
    _NOT_FINITE.fullmatch(value)
    or _LIKE_A_NUMBER.fullmatch(value)
    or _EXPRESSION.search(value)
    or "$" in _HOME.sub("~", value)
  )


def _requoted(value: str) -> str:
  return f"'{value[1:-1]}'" if len(value) > 1 else value


def _quoted(text: str) -> str:
  """Returns a literal of the text, a raw one if it has backslashes."""
  quote = '"' if "'" in text else "'"
  return f"{'r' * (chr(92) in text)}{quote}{text}{quote}"


def _broken_strings(value: str) -> Iterator[tuple[str, str]]:
  if _EXPRESSION.search(re.sub(r"'[^']*'|\"[^\"]*\"", "''", value)):
    return
  quote, rest = value[0], value[1:].rstrip()
  if chr(92) in value:
    raw = value if rest.endswith(quote) else value + quote
    yield (
      "a backslash begins an escape unless an r precedes the quotes",
      f"r{raw}",
    )
  if quote not in rest:
    other = "'\""[quote == "'"]
    closed = rest[:-1] if rest.endswith(other) else rest
    yield "a string ends with the quote that it began with", _quoted(closed)
  elif rest.endswith(quote) and quote in rest[:-1]:
    inner = rest[:-1]
    if "'" not in inner or '"' not in inner:
      yield (
        "a quote within a string wants the other kind around it",
        _quoted(inner),
      )


def _collections(value: str) -> Iterator[tuple[str, str]]:
  for begin, end in ("[]", "()", "{}"):
    if value.count(begin) > value.count(end):
      yield "a bracket is not closed", value + end
  words = []

  def quote(match):
    word = match[0]
    if word[0] in "'\"%@" or word in ("True", "False", "None"):
      return word
    words.append(word)
    return _CONSTANTS.get(word.lower(), f"'{word}'")

  better = _BARE_WORD.sub(quote, value)
  if _EXPRESSION.search(value):
    return
  if words and not any(map(_NOT_FINITE.fullmatch, words)):
    yield "a string wants quotes", better


def _as_number(text: str) -> str | None:
  """Returns the number that a text such as 10k or 2**3 means."""
  match = _NUMBER.match(text)
  suffix = text[match.end() :].strip().lower() if match else None
  if suffix in _SUFFIXES and not re.fullmatch(r"[-+]?\d+,\d\d?", match[0]):
    digits = match[0].replace(",", "_").lstrip("+")
    digits = re.sub(r"^(-?)0+(?=\d)", r"\1", digits)
    if _SUFFIXES[suffix] == 1:
      return digits
    value = float(digits) * _SUFFIXES[suffix]
    return f"{int(value):_}" if value == int(value) else f"{value:g}"
  try:
    value = _evaluate(ast.parse(text, mode="eval").body)
  except (SyntaxError, ValueError, ArithmeticError):
    return None
  return f"{value:.10g}" if isinstance(value, float) else str(value)


def _evaluate(node):
  """Evaluates arithmetic on small numbers."""
  if isinstance(node, ast.Constant) and type(node.value) in (int, float):
    if abs(node.value) < 1e6:
      return node.value
  if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
    left, right = _evaluate(node.left), _evaluate(node.right)
    if not isinstance(node.op, ast.Pow) or abs(right) <= 64:
      return _OPERATORS[type(node.op)](left, right)
  if isinstance(node, ast.UnaryOp) and type(node.op) in _OPERATORS:
    return _OPERATORS[type(node.op)](_evaluate(node.operand))
  raise ValueError("not arithmetic")
