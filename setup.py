"""Installs nfnets_tf; the reasons of the pins: docs/installation.md."""

import pathlib
import re
import shutil

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

_HERE = pathlib.Path(__file__).parent
_VERSION = re.search(
  r'__version__ = "(.+)"', (_HERE / "nfnets_tf/__init__.py").read_text()
)


def _requirements(name: str, marker: str = "") -> list:
  """Returns the packages of a file in requirements/, without what it includes.

  Args:
    name: of the file, without its ending.
    marker: the environments that they apply to, such as python_version < "3".
  """
  lines = (_HERE / f"requirements/{name}.txt").read_text().splitlines()
  packages = [line for line in lines if line and line[0] not in "#-"]
  return [f"{line}; {marker}" if marker else line for line in packages]


class _BuildPy(build_py):
  """Also copies gin/ into the package, where a wheel's launcher finds it."""

  def run(self):
    super().run()
    if not self.editable_mode:
      target = pathlib.Path(self.build_lib, "nfnets_tf/gin")
      shutil.copytree(_HERE / "gin", target, dirs_exist_ok=True)


# Later onnx cannot be imported with the ml_dtypes of TensorFlow 2.15.
_OLD_ONNX = 'onnx<1.18; python_version < "3.12"'
_TEST = [*_requirements("test"), _OLD_ONNX]
# Each is imported by one job or engine only.
_PREPARE = [line for line in _TEST if "beam" in line]
_RAY = [line for line in _TEST if "ray" in line]
_ONNX = [line for line in _TEST if "onnx" in line]
_DEV = [*_TEST, "build", "pre-commit>=3", "ruff==0.17.5", "twine"]

setup(
  name="nfnets_tf",
  version=_VERSION[1],
  description="NFNets trained at scale in TensorFlow/Keras",
  long_description=(_HERE / "README.md").read_text(),
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  packages=find_packages(include=["nfnets_tf", "nfnets_tf.*"]),
  package_data={
    "nfnets_tf.scaling": ["*.csv", "paper/*.csv", "paper/*.md", "*.html.j2"],
  },
  cmdclass={"build_py": _BuildPy},
  python_requires=">=3.9,<3.14",
  install_requires=[
    *_requirements("base"),
    *_requirements("tensorflow-2.15", 'python_version < "3.12"'),
    *_requirements("tensorflow-2.20", 'python_version >= "3.12"'),
  ],
  extras_require={
    "prepare": _PREPARE,
    "ray": _RAY,
    "onnx": _ONNX,
    "test": _TEST,
    "dev": _DEV,
  },
)
