"""The tests on several versions of Airflow, Python and Ray: ``python -m tests.matrix``."""
