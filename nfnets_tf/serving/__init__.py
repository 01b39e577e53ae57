"""Export of trained networks as SavedModels and files for other runtimes."""
