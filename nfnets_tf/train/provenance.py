"""What is known of trained weights: names, preprocessing, data, metrics."""

from __future__ import annotations

from nfnets_tf.data.dataset_info import SplitInfo
from nfnets_tf.train.run_config import DataConfig


def class_names(heldout: SplitInfo, num_classes: int) -> list[str]:
  """Returns a name for each class, its number where the data have none."""
  return list(heldout.class_names or map(str, range(num_classes)))


def known_of(
  config: DataConfig,
  heldout: SplitInfo,
  metrics: dict,
  configuration: str | None,
) -> dict:
  """Returns what an exporter is told of a run.

  Args:
    config: the run's data.
    heldout: index of its held-out split.
    metrics: for the card.
    configuration: a gin file's text, or None.
  """
  splits = {
    "trained on": config.train_split,
    "evaluated on": config.heldout_split,
  }
  data = {name: f"{x.directory}, {x.split}" for name, x in splits.items()}
  data["training examples"] = f"{config.num_examples:,}"
  data["held-out examples"] = f"{heldout.num_examples:,}"
  return {
    "class_names": class_names(heldout, config.num_classes),
    "operations": config.heldout_split.operations,
    "about": {
      "data": data,
      "metrics": metrics,
      "configuration": configuration,
    },
  }
