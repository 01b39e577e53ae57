from nfnets_tf.train.run_dir import RunDir
from nfnets_tf.train.summary import summarize

RESULT = {
  "variant": "nano",
  "step": 1234,
  "heldout_examples": 360,
  "checkpoint": "runs/x/checkpoints/ckpt-1234",
  "best_checkpoint": "runs/x/checkpoints/ckpt-900",
  "saved_model": "runs/x/saved_model/1",
  "heldout_top1": 0.975,
  "heldout_top5": 0.99,
  "weights_sha256": "ab" * 32,
}


def test_it_says_how_good_and_where_everything_lies():
  averaged = {
    "ema_heldout_top1": 0.9875,
    "ema_heldout_top5": 0.9975,
    "ema_weights_sha256": "cd" * 32,
  }
  text = summarize({**RESULT, **averaged}, RunDir("runs/x"))
  for part in (
    "1,234 steps, finished",
    "97.50% raw, 98.75% averaged weights, of 360 images",
    "99.00% raw, 99.75% averaged weights, of 360 images",
    "ab" * 32,
    "cd" * 32,
    "checkpoint      runs/x/checkpoints/ckpt-1234",
    "best            runs/x/checkpoints/ckpt-900",
    "runs/x/tensorboard",
    "runs/x/metrics.jsonl",
    "runs/x/config.gin",
    "runs/x/curves.png",
    "saved_model_cli run --dir runs/x/saved_model/1 ",
  ):
    assert part in text


def test_without_averages_it_does_not_speak_of_them():
  assert "averaged" not in summarize(RESULT, RunDir("runs/x"))


def test_a_report_is_named_if_there_is_one(tmp_path):
  files = RunDir(str(tmp_path))
  assert "report" not in summarize(RESULT, files).replace(str(tmp_path), "")
  (tmp_path / "report").mkdir()
  assert files.report in summarize(RESULT, files)
