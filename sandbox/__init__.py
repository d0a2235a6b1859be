"""A real Ray head and a real Airflow on this machine, for the demo and the tests. Not part of the package."""
