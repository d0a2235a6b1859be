"""
Run Ray jobs from Apache Airflow.

Start with :class:`airflow_provider_rayjobs.operators.RayJobSubmitOperator`. Airflow imports this module at every
start, so it imports nothing.
"""

__version__ = "0.1.0"
