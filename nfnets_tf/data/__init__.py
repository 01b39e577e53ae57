"""Shards of images, and the pipeline that reads them."""
