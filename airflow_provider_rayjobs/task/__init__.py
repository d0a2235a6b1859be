"""What one try of a task does with its Ray job. Internal: nothing here is imported by a DAG."""
