"""One try of a task and its Ray job. Internal: DAGs do not import these modules."""
