import pytest

from nfnets_tf.ops.errors import UserError


def test_keras_users_may_catch_it_as_a_value_error():
  with pytest.raises(ValueError, match="too many"):
    raise UserError("too many")
