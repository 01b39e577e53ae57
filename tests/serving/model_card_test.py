import subprocess

import pytest

import nfnets_tf
from nfnets_tf.data import preprocessing
from nfnets_tf.keras_api import keras
from nfnets_tf.serving import model_card
from nfnets_tf.serving.model_card import git_revision, render


def card(network=None, **changes):
  options = {
    "transforms": (),
    "form": "folded",
    "weights": "raw",
    "comparisons": ["SavedModel: differs by 1e-7"],
    "class_names": ["ant", "bee"],
    "signatures": ["serving_default", "features"],
    "license_name": "CC BY 4.0",
    "data": {"trained on": "photos, train"},
    "metrics": {"heldout_top1": 0.75},
    "configuration": "A = 1",
  }
  network = network or keras.Sequential(
    [keras.Input([2]), keras.layers.Dense(3)], "ants"
  )
  return render(network, **{**options, **changes})


def test_card_states_form_data_metrics_and_license():
  text = card()
  assert text.startswith("# Sequential ants, 2 classes\n")
  for line in (
    "| form | folded |",
    "| weights | raw |",
    "| architecture | Sequential ants |",
    "| parameters | 9 in training |",
    "| preprocessing | none; images keep their size |",
    "- SavedModel: differs by 1e-7",
    "| trained on | photos, train |",
    "| heldout_top1 | 0.75 |",
    "See config.gin.",
    "2 classes, all in classes.txt: ant, bee",
    "| license of the weights | CC BY 4.0 |",
    "| license of the code | Apache 2.0 |",
  ):
    assert line in text.splitlines(), line
  assert f"| by | nfnets_tf {nfnets_tf.__version__}, " in text
  assert "`features`" in text and "serving_bytes" not in text


def test_unknown_facts_are_not_stated():
  text = card(data=None, metrics={}, configuration=None, license_name=None)
  assert text.count("\nNot stated.\n") == 3
  assert "| license of the weights | not stated |" in text


def test_names_hold_no_markup():
  names = ["a|b", "<script>alert(1)</script>", "*c*", "two\nlines", "$5_$10"]
  text = card(class_names=names, data={"trained on": "x|y\n`z` <b>"})
  assert "| trained on | x\\|y \\`z\\` \\<b\\> |" in text.splitlines()
  (line,) = (x for x in text.splitlines() if "classes.txt:" in x)
  assert line.endswith(
    "a\\|b, \\<script\\>alert(1)\\</script\\>, \\*c\\*, two lines, \\$5_\\$10"
  )


def test_card_lists_the_first_of_many_classes():
  text = card(class_names=[f"c{i}" for i in range(30_000)])
  assert "30,000 classes, all in classes.txt: c0, c1," in text
  assert "c19, ...\n" in text and "c20" not in text


def test_describes_network_and_preprocessing(model):
  transforms = [preprocessing.SquashCenterCrop(image_size=32, margin=4)]
  lines = card(model.network, transforms=transforms).splitlines()
  count = model.network.count_params()
  assert {
    "| architecture | NFNet femto |",
    f"| parameters | {count:,} in training |",
    "| preprocessing | SquashCenterCrop(image_size=32, margin=4) |",
  } <= set(lines)


@pytest.fixture
def checkout(tmp_path, monkeypatch):
  def git(*arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    command = ["git", "-C", str(tmp_path), *identity, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.strip()

  git("init", "--quiet")
  (tmp_path / "code.py").write_text("1")
  git("add", ".")
  git("commit", "--quiet", "-m", "One")
  monkeypatch.setattr(model_card, "_ROOT", tmp_path)
  return tmp_path, git("rev-parse", "HEAD")


def test_revision_marks_uncommitted_changes(checkout):
  root, revision = checkout
  assert git_revision() == f"git revision {revision}"
  (root / "runs").mkdir()  # not of the code
  (root / "runs" / "log").touch()
  assert git_revision() == f"git revision {revision}"
  (root / "code.py").write_text("2")
  assert git_revision() == f"git revision {revision}, with changes"


def test_package_within_another_checkout_has_no_revision(checkout, monkeypatch):
  root, _ = checkout
  (root / "site-packages").mkdir()
  for folder in ("site-packages", "nowhere"):
    monkeypatch.setattr(model_card, "_ROOT", root / folder)
    assert git_revision() == "not in a git checkout"
  monkeypatch.setattr(model_card, "_ROOT", root)
  monkeypatch.setenv("PATH", "")
  assert git_revision() == "not in a git checkout"
