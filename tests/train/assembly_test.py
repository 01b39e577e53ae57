import pytest
import tensorflow as tf

from nfnets_tf.errors import UserError
from nfnets_tf.models.nfnet import NFNet
from nfnets_tf.optim.sam import SAM
from nfnets_tf.optim.sgd import SGD
from nfnets_tf.train.assembly import compiled_classifier
from nfnets_tf.train.classifier import Classifier
from nfnets_tf.train.run_config import ModelConfig, OptimizationConfig

SAM_USED = SAM(0.1)


def build(micro_batches, strategy):
  model = ModelConfig(
    variant="femto",
    network=lambda: NFNet("femto", 4),
    classifier=lambda **options: Classifier(
      micro_batches=micro_batches, **options
    ),
    init_weights=None,
  )
  optimization = OptimizationConfig(
    optimizer=SGD, learning_rate=0.25, sam=SAM_USED
  )
  return compiled_classifier(
    model, optimization, strategy, batch_size=12, steps_per_execution=5
  )


def test_everything_is_made_under_the_strategy():
  strategy = tf.distribute.MirroredStrategy(
    ["CPU:0", "CPU:1"], tf.distribute.ReductionToOneDevice()
  )
  model = build(3, strategy)
  for variable in (*model.network.weights, *model.optimizer.momentums):
    assert len(strategy.experimental_local_results(variable)) == 2
  assert model.sam is SAM_USED and model.optimizer.learning_rate == 0.25
  assert model.steps_per_execution == 5


def test_a_replicas_batch_must_divide_into_the_micro_batches():
  with pytest.raises(UserError, match="12 examples per replica do not divide"):
    build(5, tf.distribute.get_strategy())
