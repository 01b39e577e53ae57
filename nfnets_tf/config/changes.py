"""Whether a work directory's configuration is still the same."""

from __future__ import annotations

import ast
import logging
from collections.abc import Mapping, Set

import tensorflow as tf

from nfnets_tf.config import complaints
from nfnets_tf.config import statements as st
from nfnets_tf.errors import UserError

LOGGER = logging.getLogger("nfnets_tf")


def check_kept(
  path: str, now: Mapping[str, str], *, may_change: str, free: Set[str]
) -> None:
  """Checks that a configuration has not changed but where it may.

  Args:
    path: of the configuration as it was, which need not exist.
    now: {left side: right side} as it is.
    may_change: left side whose value names what may differ.
    free: left sides that may differ without being named.

  Raises:
    UserError: if others differ; it shows the differences.
  """
  if not tf.io.gfile.exists(path):
    return
  with tf.io.gfile.GFile(path) as file:
    before = st.split_statements(file.read())
  changed = [c for c in st.differences(before, now) if c[0] not in free]
  named = _names(now.get(may_change, "()"), may_change, {*before, *now})
  if told := _told([c for c in changed if c[0] in named]):
    LOGGER.info("Going on with another configuration: %s.", told)
  if refused := [c for c in changed if c[0] not in named | {may_change}]:
    names = sorted(named | {c[0] for c in refused})
    raise UserError(
      f"the work directory was made with another configuration ({path}:"
      f" {_told(refused)}); give another --workdir, or the old values, or"
      f' allow it by --gin_param="{may_change} = {names}".'
    )


def _names(given: str, left: str, known: set[str]) -> set[str]:
  try:
    names = list(ast.literal_eval(given))
    is_names = all(isinstance(name, str) for name in names)
  except (ValueError, SyntaxError, TypeError):
    is_names = False
  if not is_names or given[:1] in "'\"":
    raise UserError(
      f"{left} = {given} is no list of names; expected such as"
      " ['EPOCHS', 'train.TrainJob.evaluate_every']."
    )
  for name in names:
    if name not in known:
      raise UserError(
        f"{left} names {name!r}, which nothing binds"
        f"{complaints.nearest(name, known)}"
      )
  return set(names)


def _told(changed) -> str:
  shown = "; ".join(
    f"{left} was {old or 'not set'}, is {new or 'not set'}"
    for left, old, new in changed[:5]
  )
  more = f"; and {len(changed) - 5} more" if len(changed) > 5 else ""
  return shown + more
