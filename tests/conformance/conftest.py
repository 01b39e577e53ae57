"""Fixtures of the tests of whole runs."""

import pytest


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
  """Binding of a folder that the first run writes the digits to."""
  path = tmp_path_factory.mktemp("cache") / "digits"
  return f"--gin_param=DATA_DIR = {str(path)!r}"
