"""A real Ray head and a real Airflow on this machine, for the demonstration and the tests; not part of the package."""
