import pytest

from nfnets_tf.ops.errors import UserError, require_share, require_whole


def test_keras_users_may_catch_it_as_a_value_error():
  with pytest.raises(ValueError, match="too many"):
    raise UserError("too many")


def test_numbers_that_cannot_be_used():
  require_share("a.b", 0)
  require_share("a.b", 1.0)
  for value in (-0.1, 1.1, None, "1"):
    with pytest.raises(UserError, match=r"a.b = .* a share from 0 to 1"):
      require_share("a.b", value)
  require_whole("a.b", 3, 3)
  for value in (2, 3.0, None):
    with pytest.raises(UserError, match=r"a.b = .* number of at least 3"):
      require_whole("a.b", value, 3)
