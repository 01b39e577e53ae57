"""Floor 1: shards of images, and the pipeline that reads them."""
