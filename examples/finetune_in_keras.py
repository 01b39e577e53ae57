"""Fine-tunes an NFNet on a folder of class folders, in plain Keras.

  python examples/finetune_in_keras.py photos --weights=F0_haiku.npz

The steps in `finetune` are all that there is to it; the dataset can be any
`tf.data.Dataset` of batches (images in [0, 255], integer labels).
"""

import argparse
import json

import nfnets_tf
from nfnets_tf.keras_api import keras


def finetune(train, heldout, *, variant, num_classes, weights, epochs, rate):
  """Returns the fine-tuned model and its held-out metrics."""
  network = nfnets_tf.NFNet(variant, num_classes)
  if weights:
    nfnets_tf.load_weights(network, weights, keep_head=False)
  schedule = keras.optimizers.schedules.CosineDecay(rate, epochs * len(train))
  sam = nfnets_tf.SAM(rho=0.05)
  model = nfnets_tf.Classifier(network, sam=sam, ema_decay=0.999)
  model.compile(nfnets_tf.SGD(schedule, weight_decay=1e-4, clipping=0.1))
  model.fit(train, epochs=epochs)
  with model.averaged():
    return model, model.evaluate(heldout, return_dict=True)


def main() -> None:
  """Reads the folder, fine-tunes, saves the model and prints its metrics."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument(
    "folder", help="holds one folder of images for each class"
  )
  parser.add_argument("--weights", help="see nfnets_tf.load_weights")
  parser.add_argument("--variant", default="F0")
  parser.add_argument("--image_size", type=int, default=192)
  parser.add_argument("--batch_size", type=int, default=32)
  parser.add_argument("--epochs", type=int, default=10)
  parser.add_argument("--rate", type=float, default=0.05)
  parser.add_argument("--output", default="finetuned.keras")
  options = parser.parse_args()
  train, heldout = keras.utils.image_dataset_from_directory(
    options.folder,
    image_size=(options.image_size, options.image_size),
    batch_size=options.batch_size,
    validation_split=0.1,
    subset="both",
    seed=0,
  )
  model, metrics = finetune(
    train,
    heldout,
    variant=options.variant,
    num_classes=len(train.class_names),
    weights=options.weights,
    epochs=options.epochs,
    rate=options.rate,
  )
  # Save the averaged weights, which are the ones that were evaluated.
  for variable, average in zip(model.network.variables, model.averages):
    variable.assign(average)
  model.save(options.output)
  print(json.dumps({"saved": options.output, **metrics}))


if __name__ == "__main__":
  main()
