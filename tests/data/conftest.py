"""Fixtures of the tests of data."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def fresh_globals():
  """Nothing here draws from a global state, which therefore is not seeded.

  To seed it empties TensorFlow's cache of functions, and those of the decoders
  take half a second to fill it.
  """
