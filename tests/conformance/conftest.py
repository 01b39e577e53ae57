"""Fixtures of the tests of whole runs."""

import pytest

from tests.support.datasets import write_digits


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
  """Binding of a folder of the digits; launch_test.py lets a run write it."""
  path = write_digits(str(tmp_path_factory.mktemp("cache") / "digits"))
  return f"--gin_param=DATA_DIR = {path!r}"
