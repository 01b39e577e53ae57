"""What is known of trained weights: names, preprocessing, data, metrics."""

from __future__ import annotations

from nfnets_tf.data.dataset_info import SplitInfo


def class_names(job, heldout: SplitInfo) -> list[str]:
  """Returns a name for each class, its number where the data have none.

  Args:
    job: the `train.TrainJob`.
    heldout: index of its held-out split.
  """
  return list(heldout.class_names or map(str, range(job.num_classes)))


def known_of(
  job, heldout: SplitInfo, metrics: dict, configuration: str | None
) -> dict:
  """Returns what an exporter is told of a run.

  Args:
    job: the `train.TrainJob`.
    heldout: index of its held-out split.
    metrics: for the card.
    configuration: a gin file's text, or None.
  """
  splits = {"trained on": job.train_split, "evaluated on": job.heldout_split}
  data = {name: f"{x.directory}, {x.split}" for name, x in splits.items()}
  data["training examples"] = f"{job.num_examples:,}"
  data["held-out examples"] = f"{heldout.num_examples:,}"
  return {
    "class_names": class_names(job, heldout),
    "operations": job.heldout_split.operations,
    "about": {
      "data": data,
      "metrics": metrics,
      "configuration": configuration,
    },
  }
