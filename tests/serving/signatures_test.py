import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from nfnets_tf.keras_api import keras
from nfnets_tf.serving import signatures
from nfnets_tf.serving.folding import training_network
from nfnets_tf.serving.signatures import ServingModule


@pytest.fixture(scope="module")
def service(model, names, transforms):
  return ServingModule(training_network(model), names, transforms)


@pytest.fixture(scope="module")
def named(service):
  return service.signatures()


def close(got, expected):
  np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
  "name, dtype", [("serving_default", np.float32), ("serving_uint8", np.uint8)]
)
def test_images_get_logits_probabilities_and_names(
  named, model, images, names, expected, name, dtype
):
  answer = named[name](images=tf.constant(images.astype(dtype)))
  logits = expected(model, images)
  close(answer["logits"], logits)
  close(answer["probabilities"], tf.nn.softmax(logits))
  likely = [names[i].encode() for i in logits.argmax(-1)]
  assert answer["classes"].numpy().tolist() == likely
  assert len(set(likely)) > 1
  assert {x.dtype for x in answer.values()} == {tf.float32, tf.string}


def test_fractional_pixels_are_not_rounded(named, images):
  """Only resized images are rounded, not the input."""
  shifted = images.astype(np.float32) + 0.4
  whole = named["serving_default"](images=tf.constant(np.round(shifted)))
  between = named["serving_default"](images=tf.constant(shifted))
  assert np.abs(whole["logits"] - between["logits"]).max() > 1e-6


def turned_jpeg(image):
  """Returns a JPEG whose EXIF data ask to turn it clockwise."""
  exif = Image.Exif()
  exif[0x0112] = 6
  stream = io.BytesIO()
  Image.fromarray(image).save(stream, "JPEG", exif=exif)
  return stream.getvalue()


def test_mixed_formats_and_sizes_in_one_batch(named, model, images, expected):
  clear = np.zeros_like(images[0][..., :1])
  wide = np.concatenate([images[1], images[2][:, ::-1]], axis=1)
  encoded = [
    tf.io.encode_png(images[0]),
    tf.io.encode_jpeg(wide),
    tf.io.encode_png(images[3][:17, :31, :1]),  # gray
    tf.io.encode_png(np.concatenate([images[0], clear], axis=-1)),
    turned_jpeg(images[1]),
  ]
  decoded = [
    images[0],
    tf.io.decode_jpeg(encoded[1]).numpy(),
    np.repeat(images[3][:17, :31, :1], 3, axis=-1),
    np.full_like(images[0], 255),
    np.rot90(tf.io.decode_jpeg(encoded[4]).numpy(), -1),
  ]
  answer = named["serving_bytes"](encoded=tf.stack(encoded))
  logits = np.concatenate([expected(model, [image]) for image in decoded])
  close(answer["logits"], logits)


def test_features_are_the_pooled_vector(named, model, images, expected):
  features = named["features"](images=tf.constant(images, tf.float32))
  assert list(features) == ["features"]
  head = model.network.get_layer("classifier")
  close(head(features["features"]), expected(model, images))


def test_call_takes_uint8_and_float_images(service, images):
  both = [service(tf.constant(images, x)) for x in (tf.uint8, tf.float32)]
  np.testing.assert_array_equal(both[0]["logits"], both[1]["logits"])


@pytest.mark.parametrize("count", [1, 4])
def test_any_batch_size(named, images, count):
  answer = named["serving_uint8"](images=tf.constant(images[:count]))
  assert answer["probabilities"].shape == (count, 3)
  encoded = tf.stack([tf.io.encode_png(x) for x in images[:count]])
  answer = named["serving_bytes"](encoded=encoded)
  assert answer["classes"].shape == (count,)


def test_without_transforms_images_keep_their_size(model, images, names):
  service = ServingModule(training_network(model), names, ())
  named = service.signatures()
  close(
    named["serving_uint8"](images=tf.constant(images))["logits"],
    model(tf.constant(images)),
  )
  encoded = tf.stack([tf.io.encode_png(x) for x in images])
  close(
    named["serving_bytes"](encoded=encoded)["logits"],
    model(tf.constant(images)),
  )


def test_other_networks_have_no_features(names):
  network = keras.Sequential(
    [keras.Input([None, None, 3]), keras.layers.GlobalAveragePooling2D()]
  )
  service = ServingModule(lambda x: (None, network(x)), names, ())
  assert "features" not in service.signatures()


@pytest.mark.parametrize("kept", [10, -1])
def test_corrupt_image_is_an_error(named, images, kept):
  png = tf.io.encode_png(images[0]).numpy()
  broken = b"GIF9" if kept < 0 else png[:kept]
  with pytest.raises(tf.errors.InvalidArgumentError):
    named["serving_bytes"](encoded=tf.constant([png, broken]))
  assert named["serving_bytes"](encoded=tf.constant([png]))


def test_image_that_declares_too_many_pixels_is_not_decoded(
  model, names, transforms, images, monkeypatch
):
  png = tf.io.encode_png(images[0])
  monkeypatch.setattr(signatures, "MAX_PIXELS", images[0][..., 0].size - 1)
  service = ServingModule(training_network(model), names, transforms)
  with pytest.raises(tf.errors.InvalidArgumentError, match="1,999 pixels"):
    service.signatures()["serving_bytes"](encoded=tf.stack([png]))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nonfinite_pixel_is_an_error(named, images, value):
  images = images.astype(np.float32)
  images[0, 3, 3, 0] = value
  with pytest.raises(tf.errors.InvalidArgumentError, match="must be finite"):
    named["serving_default"](images=tf.constant(images))
