"""Installs nfnets_tf; the reasons of the pins: docs/installation.md."""

import pathlib
import re

from setuptools import find_packages, setup

_HERE = pathlib.Path(__file__).parent
_VERSION = re.search(
  r'__version__ = "(.+)"', (_HERE / "nfnets_tf/__init__.py").read_text()
)

# Writes shards; only that job imports it.
_PREPARE = ["apache-beam>=2.60"]
# An engine of sweeps; only it imports it.
_RAY = ["ray>=2.9"]
# Writes ONNX files; later onnx needs a protobuf that TensorFlow 2.15 does not.
_ONNX = ["onnx>=1.14,<1.18", "onnxruntime>=1.16", "tf2onnx>=1.17,<1.18"]
_TEST = [*_PREPARE, *_RAY, *_ONNX, "pytest>=8,<9", "pytest-xdist>=3.7,<4"]
_DEV = [*_TEST, "pre-commit>=3", "ruff==0.17.5"]

setup(
  name="nfnets_tf",
  version=_VERSION[1],
  description="NFNets trained at scale in TensorFlow/Keras",
  long_description=(_HERE / "README.md").read_text(),
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  packages=find_packages(include=["nfnets_tf", "nfnets_tf.*"]),
  package_data={
    "nfnets_tf.scaling": ["paper/*.csv", "paper/*.md", "*.html.j2"],
  },
  python_requires=">=3.9,<3.12",
  install_requires=[
    "absl-py",
    "gin-config==0.5.0",
    "h5py>=3.8",
    "importlib-resources",
    "jinja2>=3.0",
    "keras==2.15.0",
    "matplotlib>=3.7",
    "numpy<2",
    "pandas>=2.0",
    "scikit-learn>=1.3",
    "scipy>=1.9",
    "setuptools<81",
    "tensorflow==2.15.1",
    "tensorflow-addons==0.23.0",
    "tensorflow-datasets>=4.9.3,<4.9.9",
    "tensorflow-metadata<1.17",
    "tf-models-official==2.15.0",
    "tqdm>=4.60",
  ],
  extras_require={
    "prepare": _PREPARE,
    "ray": _RAY,
    "onnx": _ONNX,
    "test": _TEST,
    "dev": _DEV,
  },
)
