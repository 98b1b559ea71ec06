"""What the feature losses look through and compare with: networks, and their kernels on a CPU."""
