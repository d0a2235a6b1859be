"""The log of a job: what is new in it, where that can be had at what cost, and how much of it is shown."""
