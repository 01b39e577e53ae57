"""Labels and images as Keras users have them: taken, or refused by name."""

import warnings

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from nfnets_tf.errors import UserError
from nfnets_tf.keras_api import keras
from nfnets_tf.optim.sgd import SGD
from nfnets_tf.train.classifier import Classifier

N = 12
R = np.random.default_rng(0)
IMAGES = R.integers(0, 255, [N, 32, 32, 3]).astype(np.uint8)
LABELS = np.arange(N) % 4
ONE_HOT = np.eye(4)[LABELS]
INTEGERS = "int8 uint8 int16 uint16 int32 uint32 int64 uint64".split()
SAME = {
  **{name: LABELS.astype(name) for name in INTEGERS},
  "cifar10": LABELS.astype(np.uint8)[:, None],
  "float16": LABELS.astype(np.float16),
  "float64": LABELS.astype(np.float64),
  "binary mode": LABELS.astype(np.float32)[:, None],
  "one-hot": ONE_HOT,
  "categorical mode": ONE_HOT.astype(np.float32),
  "integer one-hot": ONE_HOT.astype(np.uint8),
  "bool one-hot": ONE_HOT.astype(bool),
}
OTHER_FORMS = {
  "list": LABELS.tolist(),
  "list of lists": LABELS[:, None].tolist(),
  "tensor": tf.constant(LABELS),
  "bfloat16": tf.cast(LABELS, tf.bfloat16),
  "series": pd.Series(LABELS, index=range(50, 50 + N)),
  "frame": pd.DataFrame({"label": LABELS}),
}


@pytest.fixture(scope="module")
def model(tiny_network):
  """A classifier of 4 classes that hardly learns."""
  network = tiny_network(drop_rate=0.0, stochdepth_rate=0.0)
  model = Classifier(network, label_smoothing=0.0, ema_decay=None)
  model.compile(SGD(1e-12, weight_decay=0.0), run_eagerly=True)
  return model


@pytest.fixture(scope="module")
def expected(model):
  return model.evaluate(IMAGES, LABELS, verbose=0)


class Batches(keras.utils.Sequence):
  def __init__(self, *arrays):
    self.arrays = arrays

  def __len__(self):
    return 3

  def __getitem__(self, index):
    return tuple(array[4 * index : 4 * index + 4] for array in self.arrays)


def generator(*arrays):
  batches = Batches(*arrays)
  return (batches[i] for i in range(3))


def dataset(*arrays):
  return tf.data.Dataset.from_tensor_slices(arrays).batch(5)


@pytest.mark.parametrize("name", [*SAME, *OTHER_FORMS])
def test_labels_of_every_form_mean_the_same(model, expected, name):
  labels = {**SAME, **OTHER_FORMS}[name]
  results = [model.evaluate(IMAGES, labels, verbose=0)]
  if name in SAME:
    for make in (dataset, Batches, generator):
      results.append(model.evaluate(make(IMAGES, labels), verbose=0))
  for result in results:
    assert result == pytest.approx(expected, rel=1e-5)


def test_cifar10_as_keras_loads_it_trains(tiny_network, expected):
  """In a graph, and then with labels of another form in the same one."""
  model = Classifier(tiny_network(drop_rate=0.0, stochdepth_rate=0.0))
  model.compile(SGD(0.1))
  labels = SAME["cifar10"]
  shown = []
  for given in (labels, LABELS, ONE_HOT, labels):
    keras.utils.set_random_seed(0)
    model.optimizer.learning_rate = 0.0
    history = model.fit(
      IMAGES, given, verbose=0, validation_data=(IMAGES, given)
    )
    shown.append((history.history["loss"], history.history["val_loss"]))
  for pair in shown:
    assert pair[0] == pytest.approx(shown[0][0], rel=1e-5)
    assert pair[1] == pytest.approx([expected[0]], rel=1e-5)


@pytest.mark.parametrize("form", ["cifar10", "bool one-hot", "float16"])
def test_class_weights_of_labels_of_any_form(model, form):
  weights = {0: 1, 1: 10, 2: 1, 3: 1}
  losses = [
    model.train_on_batch(
      IMAGES, labels, class_weight=weights, reset_metrics=True
    )[0]
    for labels in (LABELS, SAME[form])
  ]
  assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_soft_labels_are_distributions(model):
  soft = 0.6 * ONE_HOT + 0.1
  losses = [
    model.test_on_batch(IMAGES, labels, reset_metrics=True)[0]
    for labels in (soft, *(np.full(N, c) for c in range(4)), LABELS)
  ]
  by_hand = 0.1 * sum(losses[1:5]) + 0.6 * losses[5]
  assert losses[0] == pytest.approx(by_hand, rel=1e-5)


NAMES = np.array(["cat", "dog", "eel", "fox"])[LABELS]
REFUSED = {
  "fractions": (IMAGES, LABELS + 0.5, "fractions, such as 0.5"),
  "NaN": (IMAGES, np.where(LABELS == 1, np.nan, LABELS), "such as nan"),
  "from 1": (IMAGES, LABELS + 1, "from 1 to 4, .*subtract 1"),
  "too many classes": (IMAGES, LABELS * 2, "from 0 to 6, .*4 classes"),
  "negative": (IMAGES, LABELS - 1, "from -1 to 2"),
  "3 columns": (IMAGES, np.eye(3)[LABELS % 3], r"\(12, 3\).*4 classes"),
  "several labels": (IMAGES, np.ones([N, 4]), "example 0 sum to 4"),
  "names": (IMAGES, NAMES, "string.*np.unique"),
  "objects": (IMAGES, pd.Series(NAMES), "string.*np.unique"),
  "lengths": (IMAGES, LABELS[:5], "12 images and 5 labels"),
  "no labels": (IMAGES, None, "images alone; expected"),
  "gray": (IMAGES[..., 0], LABELS, "np.repeat"),
  "one channel": (IMAGES[..., :1], LABELS, "grayscale_to_rgb"),
  "channels first": (np.moveaxis(IMAGES, -1, 1), LABELS, "np.moveaxis"),
  "four channels": (np.tile(IMAGES, 2)[..., :4], LABELS, "transparency"),
  "text": (NAMES, LABELS, "images of shape .*string"),
  "sizes": ([IMAGES[0], IMAGES[1, 4:]], [0, 1], "several sizes"),
  "dict": ({"image": IMAGES}, LABELS, "are a dict"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_learned_is_refused_at_once(model, name):
  images, labels, words = REFUSED[name]
  for method in (model.fit, model.evaluate, model.train_on_batch):
    with pytest.raises(UserError, match=words) as caught:
      method(images, labels)
    assert "\n" not in str(caught.value)
  with pytest.raises(UserError, match=words):
    model.fit(IMAGES, LABELS, validation_data=(images, labels))


@pytest.mark.parametrize(
  "name", ["3 columns", "names", "one channel", "channels first"]
)
def test_batches_of_other_shapes_are_refused_at_once(model, name):
  images, labels, words = REFUSED[name]
  for make in (dataset, Batches, generator):
    with pytest.raises(UserError, match=words.split(".*")[-1]):
      model.fit(make(images, labels))


@pytest.mark.parametrize(
  "data, words",
  [
    (lambda: dataset(IMAGES, LABELS).unbatch(), r"dataset\.batch\(32\)"),
    (lambda: dataset(IMAGES).map(lambda x: x), "images alone"),
    (
      lambda: dataset(IMAGES, LABELS).map(lambda x, y: {"x": x, "y": y}),
      "are a dict",
    ),
    (lambda: iter(()), "yields nothing"),
    (lambda: generator(IMAGES, LABELS + 1), "subtract 1"),
    (lambda: Batches(IMAGES, LABELS + 0.5), "fractions"),
  ],
)
def test_batches_of_another_kind_are_refused_at_once(model, data, words):
  with pytest.raises(UserError, match=words):
    model.fit(data())
  with pytest.raises(UserError, match=words):
    model.fit(IMAGES, LABELS, validation_data=data())


@pytest.mark.parametrize(
  "options, words",
  [
    (dict(class_weight=np.ones(4)), "dict"),
    (dict(class_weight={0: 1, 1: 10}), "no weight for class 3"),
    (dict(class_weight={1: 1, 2: 10}), "keys"),
    (dict(class_weight={0: 1, 1: -1, 2: 1, 3: 1}), ">= 0"),
    (dict(class_weight=dict.fromkeys(range(4), 0)), "nothing would be trained"),
    (dict(sample_weight=np.zeros(N)), "nothing would be trained"),
    (
      dict(sample_weight=LABELS == 1, class_weight={0: 1, 1: 0, 2: 1, 3: 1}),
      "nothing would be trained",
    ),
    (dict(sample_weight=np.ones([N, 2])), r"\(12, 2\)"),
    (dict(sample_weight=np.ones(3)), "12 images and 3 weights"),
    (dict(sample_weight=np.full(N, np.nan)), "nan; expected"),
    (dict(sample_weight=np.full(N, -1)), "-1; expected"),
  ],
)
def test_weights_that_fit_no_example_are_refused(model, options, words):
  with pytest.raises(UserError, match=words):
    model.fit(IMAGES, LABELS, **options)


@pytest.mark.parametrize(
  "images, words",
  [
    (IMAGES / 255.0, "multiply them by 255"),
    (IMAGES / 127.5 - 1, "multiply them by 255"),
    (IMAGES.astype(np.uint16) * 257, "reach 65"),
  ],
)
def test_a_range_that_no_image_has_is_told(model, images, words):
  with pytest.warns(UserWarning, match=words):
    model.predict(images, verbose=0)
  with warnings.catch_warnings():
    warnings.simplefilter("error", UserWarning)
    model.predict(images[:, :1, :1] * 0 + 7.0, verbose=0)


@pytest.mark.parametrize("make", [dataset, Batches, generator])
def test_class_weights_of_unseen_labels_are_of_all_classes(model, make):
  for weights in ({0: 1, 1: 10}, dict.fromkeys(range(4), 0)):
    with pytest.raises(UserError, match="class 3|nothing would be trained"):
      model.fit(make(IMAGES, LABELS), class_weight=weights)
  with pytest.raises(UserError, match="nothing would be trained"):
    model.fit(IMAGES, LABELS * 0, class_weight={0: 0, 1: 1, 2: 1, 3: 1})


def test_images_alone_are_predicted_from_every_source(model):
  expected = model.predict(IMAGES, verbose=0)
  for images in (
    list(IMAGES),
    [IMAGES],
    dataset(IMAGES).map(lambda x: x),
    dataset(IMAGES, LABELS),
    (IMAGES[i : i + 4] for i in (0, 4, 8)),
  ):
    np.testing.assert_allclose(
      model.predict(images, verbose=0), expected, atol=1e-6
    )
  with pytest.raises(UserError, match=r"images\[None\]"):
    model.predict(IMAGES[0])


@pytest.mark.parametrize("mode", ["int", "categorical", "binary"])
def test_keras_reads_folders_in_every_label_mode(model, tmp_path, mode):
  classes = 2 if mode == "binary" else 4
  for label in range(classes):
    (tmp_path / f"class{label}").mkdir()
    png = tf.io.encode_png(IMAGES[label])
    tf.io.write_file(str(tmp_path / f"class{label}" / "0.png"), png)
  data = keras.utils.image_dataset_from_directory(
    tmp_path, label_mode=mode, image_size=(32, 32), shuffle=False
  )
  expected = model.evaluate(IMAGES[:classes], np.arange(classes), verbose=0)
  assert model.evaluate(data, verbose=0) == pytest.approx(expected, rel=1e-5)
