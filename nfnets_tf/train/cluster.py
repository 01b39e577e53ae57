"""TF_CONFIG: who the processes of a multi-worker run are."""

from __future__ import annotations

import json
import os
from typing import NamedTuple

from nfnets_tf.errors import UserError

_EXPECTED = (
  'expected {"cluster": {"worker": ["host:port", ...]}, "task": {"type":'
  ' "worker", "index": 0}}, the index another in each process'
  " (docs/many_machines.md)."
)


class Cluster(NamedTuple):
  """What TF_CONFIG says.

  Attributes:
    addresses: of all workers, "HOST:PORT"; the first is the chief.
    index: of this process among them.
  """

  addresses: tuple[str, ...]
  index: int


def read_cluster() -> Cluster | None:
  """Reads TF_CONFIG; None if it is not set or names no workers.

  Raises:
    UserError: if it cannot be used.
  """
  text = os.environ.get("TF_CONFIG", "").strip()
  if not text:
    return None
  try:
    content = json.loads(text)
    jobs, task = content.get("cluster") or {}, content.get("task") or {}
    if not jobs:
      return None
    chief, workers = list(jobs.pop("chief", ())), list(jobs.pop("worker", ()))
    kind, index = task["type"], task["index"]
  except (ValueError, TypeError, AttributeError, KeyError) as error:
    raise _unusable(text, f"{type(error).__name__}: {error}") from error
  if jobs or kind not in ("chief", "worker"):
    wrong = [job for job in (*jobs, kind) if job not in ("chief", "worker")]
    names = ", ".join(dict.fromkeys(map(str, wrong)))
    raise _unusable(text, f"{names} can have no part in it")
  if len(chief) > 1:
    raise _unusable(text, "there can be one chief")
  own = chief if kind == "chief" else workers
  if type(index) is str and index.isdigit():
    index = int(index)
  if type(index) is not int or not 0 <= index < len(own):
    raise _unusable(text, f"there is no {kind} of index {index}")
  addresses = (*chief, *workers)
  for address in addresses:
    host, _, port = str(address).rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
      raise _unusable(text, f"{address!r} is not HOST:PORT")
  if len(set(addresses)) < len(addresses):
    raise _unusable(text, "two workers have the same address")
  return Cluster(addresses, index + (0 if kind == "chief" else len(chief)))


def _unusable(text: str, reason: str) -> UserError:
  text = " ".join(text.split())
  shown = text if len(text) <= 200 else f"{text[:200]}..."
  return UserError(
    f"TF_CONFIG = {shown} cannot be used ({reason}); {_EXPECTED}"
  )
