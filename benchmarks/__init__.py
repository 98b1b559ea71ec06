"""Measurements of the losses: what the pages of the documentation show."""
