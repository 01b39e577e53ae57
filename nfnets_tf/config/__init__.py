"""Gin configurations; the only package that imports gin."""

from nfnets_tf.config.config import Configuration, Launch, bound_arguments
from nfnets_tf.config.grid import grid

__all__ = ["Configuration", "Launch", "bound_arguments", "grid"]
