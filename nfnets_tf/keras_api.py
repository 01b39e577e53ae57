"""The Keras that everything here is built on: Keras 2, in its newest form.

TensorFlow 2.15 carries it as `tensorflow.keras`. From 2.16 on that name is
Keras 3, whose layers, optimizers and files are other classes, and Keras 2 is
the package `tf_keras`. All modules import `keras` from here, so that no
environment variable decides and other code of the process may use Keras 3.
"""

from __future__ import annotations

import tensorflow as tf

if tuple(map(int, tf.__version__.split(".")[:2])) < (2, 16):
  from tensorflow import keras
else:
  import tf_keras as keras

__all__ = ["keras"]
