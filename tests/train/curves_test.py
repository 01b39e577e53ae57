import tensorflow as tf

from nfnets_tf.train.curves import draw_curves


def draw(tmp_path, records):
  path = str(tmp_path / "curves.png")
  draw_curves(records, path, title="a run")
  return tf.io.decode_png(tf.io.read_file(path), channels=3).numpy()


def test_every_curve_is_in_the_picture(tmp_path):
  records = []
  for step in range(1, 11):
    records.append(
      {"step": step, "loss": 2 / step, "top1": 0.09 * step}
      | {"learning_rate": 0.1}
    )
    for prefix in ("heldout", "ema_heldout"):
      records.append(
        {"step": step, f"{prefix}_loss": 1 / step, f"{prefix}_top1": 0.5}
      )
  image = draw(tmp_path, records)
  assert image.shape[1] > 1000
  colours = {tuple(pixel) for pixel in image.reshape(-1, 3)}
  for drawn in ((31, 119, 180), (255, 127, 14), (44, 160, 44)):  # C0, C1, C2
    assert drawn in colours
  few = draw(tmp_path, records[:1])
  assert (44, 160, 44) not in {tuple(p) for p in few.reshape(-1, 3)}


def test_a_run_without_records_is_drawn_empty(tmp_path):
  assert draw(tmp_path, []).shape[2] == 3
