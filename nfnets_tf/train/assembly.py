"""The classifier of a run, built and compiled under its strategy."""

from __future__ import annotations

import tensorflow as tf

from nfnets_tf.train.classifier import Classifier
from nfnets_tf.train.train_step import check_micro_batches


def compiled_classifier(job, strategy: tf.distribute.Strategy) -> Classifier:
  """Builds what a run trains.

  Args:
    job: the `train.TrainJob`.
    strategy: under whose scope all variables are made.

  Raises:
    UserError: if a replica's batch does not divide into the micro-batches.
  """
  with strategy.scope():
    classifier = job.classifier(network=job.network(), sam=job.sam)
    replicas = strategy.num_replicas_in_sync
    check_micro_batches(job.batch_size // replicas, classifier.micro_batches)
    classifier.compile(
      optimizer=job.optimizer(learning_rate=job.learning_rate),
      steps_per_execution=job.steps_per_execution,
    )
  return classifier
