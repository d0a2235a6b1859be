"""Read the log of a job, find its new lines, and cut them into records."""
