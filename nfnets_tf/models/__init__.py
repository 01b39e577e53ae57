"""The networks: layers, NFNet and its sizes, cost, and weight files."""
