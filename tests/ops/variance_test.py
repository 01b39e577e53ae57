import math

from nfnets_tf.ops.variance import input_scales


def test_transition_sees_the_stage_before_and_resets_it():
  scales = input_scales((3, 2), alpha=0.2)
  # Worked by hand: variance 1, 1.04, 1.08; the transition of stage 2 sees 1.12.
  variances = [1.0, 1.04, 1.08, 1.12, 1.04]
  expected = [1 / math.sqrt(variance) for variance in variances]
  for got, want in zip(scales, expected):
    assert math.isclose(got, want, rel_tol=1e-12)
  assert len(scales) == 5
