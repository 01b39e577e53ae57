import types

from nfnets_tf.data import pipeline, preprocess
from nfnets_tf.train.provenance import class_names, known_of


def job(directory):
  splits = {
    f"{name}_split": pipeline.Split(
      directory=directory,
      split=name,
      num_classes=4,
      operations=[preprocess.Resize(image_size=size)],
    )
    for name, size in (("train", 8), ("heldout", 16))
  }
  return types.SimpleNamespace(num_classes=4, num_examples=1_200, **splits)


def test_an_exporter_is_told_of_the_evaluation_and_of_the_data(make_dataset):
  directory = make_dataset(heldout=13)
  run = job(directory)
  heldout = run.heldout_split.index()
  told = known_of(run, heldout, {"top1": 0.5}, "A = 1")
  assert told.pop("operations")[0].image_size == 16
  assert told == {
    "class_names": ["a", "b", "c", "d"],
    "about": {
      "data": {
        "trained on": f"{directory}, train",
        "evaluated on": f"{directory}, heldout",
        "training examples": "1,200",
        "held-out examples": "13",
      },
      "metrics": {"top1": 0.5},
      "configuration": "A = 1",
    },
  }


def test_classes_without_names_are_numbered():
  unnamed = types.SimpleNamespace(class_names=())
  assert class_names(unnamed, 3) == ["0", "1", "2"]
