"""What the provider costs and how fast it is, beside baselines of the same run: ``python -m benchmarks``."""
