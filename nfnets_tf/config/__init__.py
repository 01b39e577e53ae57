"""Gin configurations; the only package that imports gin."""

from nfnets_tf.config.config import Configuration, Launch
from nfnets_tf.config.grid import grid

__all__ = ["Configuration", "Launch", "grid"]
