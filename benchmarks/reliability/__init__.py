"""Counts of test runs and fuzz runs, and a long training."""
