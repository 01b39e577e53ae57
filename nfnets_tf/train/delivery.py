"""What a finished run hands out: a SavedModel and a report."""

from contextlib import nullcontext

from nfnets_tf.data.index import SplitIndex
from nfnets_tf.train.classifier import Classifier
from nfnets_tf.train.workdir import Workdir


def deliver(
  job, files: Workdir, classifier: Classifier, heldout: SplitIndex
) -> str:
  """Exports the classifier and reports on the weights that are exported.

  Those are the averages where there are any.

  Args:
    job: the `run.Training`.
    files: where everything is written.
    classifier: trained; its state is left as it is.
    heldout: index of the held-out split.

  Returns:
    The SavedModel's folder.
  """
  names = list(heldout.class_names or map(str, range(job.num_classes)))
  averaged = bool(classifier.averages)
  if job.report is not None:
    with classifier.averaged() if averaged else nullcontext():
      job.report(
        classifier,
        job.heldout_split,
        heldout,
        files.report,
        class_names=names,
        batch_size=job.batch_size,
      )
  return job.export(
    classifier,
    files.saved_models,
    class_names=names,
    operations=job.heldout_split.operations,
    averaged=averaged,
  )
