"""Read the log of a job, find what is new in it, and cut that into records."""
