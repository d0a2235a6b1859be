"""Measure cost and speed of the provider against baselines of the same run: ``python -m benchmarks``."""
