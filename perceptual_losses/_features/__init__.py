"""The networks and the distances of the feature losses, and their kernels on a CPU."""
