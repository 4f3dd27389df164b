"""Gaussian processes: sparse variational inference in dual form and its baselines, on GPyTorch."""
