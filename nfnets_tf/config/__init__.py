"""Gin configurations; the only package that imports gin."""

from nfnets_tf.config.axes import grid
from nfnets_tf.config.config import Configuration, Launch

__all__ = ["Configuration", "Launch", "grid"]
