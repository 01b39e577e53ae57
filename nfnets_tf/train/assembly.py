"""The classifier of a run, built and compiled under its strategy."""

from __future__ import annotations

import tensorflow as tf

from nfnets_tf.train.classifier import Classifier
from nfnets_tf.train.run_config import ModelConfig, OptimizationConfig
from nfnets_tf.train.train_step import check_micro_batches


def compiled_classifier(
  model: ModelConfig,
  optimization: OptimizationConfig,
  strategy: tf.distribute.Strategy,
  *,
  batch_size: int,
  steps_per_execution: int = 1,
) -> Classifier:
  """Builds the model that a run trains.

  Args:
    model: the network and the classifier around it.
    optimization: the optimizer.
    strategy: under whose scope all variables are made.
    batch_size: over all replicas.
    steps_per_execution: steps of one call of the training function.

  Raises:
    UserError: if a replica's batch does not divide into the micro-batches.
  """
  with strategy.scope():
    classifier = model.classifier(network=model.network(), sam=optimization.sam)
    replicas = strategy.num_replicas_in_sync
    check_micro_batches(batch_size // replicas, classifier.micro_batches)
    classifier.compile(
      optimizer=optimization.optimizer(
        learning_rate=optimization.learning_rate
      ),
      steps_per_execution=steps_per_execution,
    )
  return classifier
