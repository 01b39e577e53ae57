import pytest

from nfnets_tf.errors import UserError
from nfnets_tf.models import variants


def test_each_is_the_depth_of_f0_times_its_number_plus_one():
  for number in range(8):
    depths = tuple(n * (number + 1) for n in (1, 2, 6, 3))
    assert variants.variant(f"F{number}").depths == depths
    assert variants.variant(f"F{number}+").depths == depths


def test_plus_is_wider_and_nothing_else():
  assert variants.variant("F7+").widths == (384, 768, 2048, 2048)
  assert variants.variant("F7+").drop_rate == variants.variant("F7").drop_rate
  assert variants.variant("F7+").stem_widths == (16, 32, 64)


def test_dropout_of_the_nfnet_papers_table_1():
  rates = [variants.variant(f"F{number}").drop_rate for number in range(7)]
  assert rates == [0.2, 0.3, 0.4, 0.4, 0.5, 0.5, 0.5]


@pytest.mark.parametrize(
  "width, rule, expected",
  [
    (384, "released", (128, 1)),
    (384, "published", (192, 1)),
    (1536, "released", (768, 6)),
    (1536, "published", (768, 6)),
  ],
)
def test_bottleneck(width, rule, expected):
  assert variants.bottleneck_shape(width, 128, rule) == expected


def test_misspelt_names_are_answered_with_the_nearest():
  with pytest.raises(UserError, match=r"'F8' does not exist.*did you mean 'F"):
    variants.variant("F8")
  with pytest.raises(UserError, match="'publishd' is invalid"):
    variants.bottleneck_shape(384, 128, "publishd")
