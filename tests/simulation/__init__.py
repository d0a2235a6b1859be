"""
A deterministic simulation of task instances on Airflow, Ray and a network, with the real operators and triggers.

Read in this order: ``clock`` (virtual time, processes), ``ray`` (the cluster), ``network`` (what happens to a request),
``airflow`` (tries, deferrals, kills), ``history`` (one run with its faults), ``invariants`` (what must hold),
``scenarios`` (the tasks), ``campaign`` (many histories), ``virtual_time`` (the patches). ``shared_watch`` has histories
of their own: many triggers that follow jobs of one cluster.
"""
