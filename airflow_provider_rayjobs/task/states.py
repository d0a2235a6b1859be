"""
The states of a try of a task: theory of operation.

A try can break off at any moment, and must not leave an orphaned job. What happens to the job then depends on one
value, the :class:`State`. Only ``Execution._enter`` changes it, and arms or disarms the kill switch accordingly.
"Orphan risk" means that a job may run which the try must not leave behind unattended (``State.may_run``).

===========  =============================================================  ===========  ============================
state        meaning                                                        orphan risk  kill switch
===========  =============================================================  ===========  ============================
NO_JOB       nothing was submitted, or what was submitted does not run      no           disarmed
EARLIER_JOB  the job of an earlier try is looked up, or being replaced      yes          disarmed
SUBMITTING   the job record is stored; the submission may have been sent    yes          armed, unless the user chose
                                                                                         the id: it may be taken
FOLLOWING    Ray has the job, and it is ours                                yes          armed
RELEASED     ``wait_for_completion=False``: the job runs on                 no           armed
DEFERRED     the trigger follows the job, and stops it on a kill            no           disarmed
DONE         the job ended or was stopped, or the try is over               no           disarmed
===========  =============================================================  ===========  ============================

===========  ===========  ===========================================================================================
from         to           when
===========  ===========  ===========================================================================================
NO_JOB       EARLIER_JOB  a job record of an earlier try exists: ``Action.ASK``
EARLIER_JOB  NO_JOB       nothing of it runs: ``Action.SUBMIT``, ``RESUBMIT`` or ``FINISH``
EARLIER_JOB  FOLLOWING    it is this try's job as well: ``Action.REATTACH``
EARLIER_JOB  DONE         it was stopped: ``Action.REPLACE``
NO_JOB       SUBMITTING   the new job record is stored
DONE         SUBMITTING   the new job record is stored, after ``Action.REPLACE``
SUBMITTING   FOLLOWING    Ray has the job
SUBMITTING   NO_JOB       Ray refused the first request; a retried one may have arrived (``was_retried``)
FOLLOWING    RELEASED     ``wait_for_completion=False``
FOLLOWING    DEFERRED     the task is deferred
DEFERRED     FOLLOWING    the task resumes: such a try begins in DEFERRED
any other    DONE         the job ended or was stopped; at the latest the end of the try, except in DEFERRED
===========  ===========  ===========================================================================================

========================  ======================================================  ===================================
the try is broken off by  with an orphan risk                                     otherwise
========================  ======================================================  ===================================
an error                  the job is left to the next try if there is one and it  the error is raised
                          can find the job, otherwise stopped
a time limit of the job   ``abandoned`` is stored, then the job is stopped; if    does not happen
                          it ended by itself before, that end counts
``execution_timeout``     as a time limit; with ``stop_on_kill=False`` the job    Airflow's timeout is raised
                          is left alone
a kill                    the kill switch sends a stop if it is armed; then the   likewise if it is armed (RELEASED);
                          try stops the job, until Ray confirms its end           the try sends no further request
========================  ======================================================  ===================================
"""

from __future__ import annotations

from enum import Enum, auto


class State(Enum):
    """Where a try stands with its job; the module's docstring has the table."""

    NO_JOB = auto()
    EARLIER_JOB = auto()
    SUBMITTING = auto()
    FOLLOWING = auto()
    RELEASED = auto()
    DEFERRED = auto()
    DONE = auto()

    @property
    def may_run(self) -> bool:
        """Tell whether a job may run that must not be orphaned if the try is broken off."""
        return self in (State.EARLIER_JOB, State.SUBMITTING, State.FOLLOWING)

    def is_armed(self, *, has_own_id: bool) -> bool:
        """Tell whether a kill stops the job at once. Only a generated id (``has_own_id``) is surely free."""
        return self in (State.FOLLOWING, State.RELEASED) or (self is State.SUBMITTING and has_own_id)
