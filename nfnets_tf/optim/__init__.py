"""Floor 1: the optimizer, its schedules and the average of the weights."""
