"""Uses an installed wheel as a Keras user does, away from the clone."""

import os
import pathlib

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import numpy as np
import tensorflow as tf

import nfnets_tf
from nfnets_tf import keras
from nfnets_tf.models.weights import save_deepmind

assert not (pathlib.Path(nfnets_tf.__file__).parents[1] / "setup.py").exists()

images = np.random.default_rng(0).integers(0, 255, [8, 32, 32, 3], np.uint8)
labels = np.arange(8) % 3
save_deepmind(nfnets_tf.NFNet("femto", 5), "femto.npz")
network = nfnets_tf.NFNet("femto", 3, skip_gain=1.0)
nfnets_tf.load_weights(network, "femto.npz", keep_head=False)
model = nfnets_tf.Classifier(network)
model.compile(nfnets_tf.AGC(keras.optimizers.AdamW(1e-3)))
model.fit(images, labels, epochs=2, verbose=0)
nfnets_tf.export_saved_model(model, "served", class_names=["a", "b", "c"])
answer = tf.saved_model.load("served")(images)["classes"]
assert set(answer.numpy()) <= {b"a", b"b", b"c"}, answer
