import numpy as np
import tensorflow as tf

from nfnets_tf.train.pictures import draw_confusion, draw_images


def pixels(path):
  return tf.io.decode_png(path.read_bytes(), channels=3).numpy()


def test_a_confusion_matrix_is_dark_where_a_class_is_taken_for_another(
  tmp_path,
):
  def share_of_dark(confusion, name):
    draw_confusion(np.array(confusion), ["a", "b"], str(tmp_path / name))
    red = pixels(tmp_path / name)[..., 0]
    # The left half of the picture's upper part: true a, predicted a.
    height, width = red.shape
    return (red[: height // 3, width // 5 : width // 3] < 60).mean()

  right = share_of_dark([[9, 0], [0, 9]], "right.png")
  wrong = share_of_dark([[0, 9], [9, 0]], "wrong.png")
  assert right > 0.5 > 0.1 > wrong


def test_many_classes_and_empty_ones_can_be_drawn(tmp_path):
  for count in (3, 30, 200):
    names = [f"class {i}" for i in range(count)]
    path = tmp_path / f"{count}.png"
    draw_confusion(np.zeros([count, count], int), names, str(path))
    assert pixels(path).shape[0] > 300


def test_images_appear_in_the_sheet(tmp_path):
  colours = np.eye(3, dtype=np.uint8) * 255
  images = [np.tile(colour, [8, 8, 1]) for colour in colours]
  draw_images(images, ["r", "g", "b"], str(tmp_path / "sheet.png"))
  sheet = pixels(tmp_path / "sheet.png").reshape(-1, 3)
  shares = [(sheet == colour).all(axis=1).mean() for colour in colours]
  assert min(shares) > 0.05


def test_no_image_at_all(tmp_path):
  draw_images([], [], str(tmp_path / "none.png"))
  assert (pixels(tmp_path / "none.png") < 128).any()  # it says so
