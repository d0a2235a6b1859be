"""
The states of a try of a task: theory of operation.

An error, a time limit or a kill may abort a try at any moment. It must not leave an orphaned job. One value, the
:class:`State`, decides whether the try has to care for a job then ("owns job"). Only ``Boundary._enter`` changes the
state; it also arms or disarms the kill switch.

===========  =============================================================  ===========  ============================
state        meaning                                                        owns job     kill switch
===========  =============================================================  ===========  ============================
STARTING     the job record was not read yet                                (yes)        disarmed
NO_JOB       nothing was submitted, or no submitted job runs                no           disarmed
EARLIER_JOB  Ray is asked about an earlier try's job, or the try stops it   yes          armed (*)
SUBMITTING   the job record is stored; the submission may have been sent    yes          armed
FOLLOWING    Ray has the job, and this task submitted it                    yes          armed
RELEASED     ``wait_for_completion=False``: the job may run on              no           armed
DEFERRED     the trigger follows the job, and stops it on a kill            (yes)        disarmed
DONE         the job ended or was stopped, or the try is over               no           disarmed
===========  =============================================================  ===========  ============================

(*) As soon as the cluster of the job is known, and if the job record has a nonce.
"(yes)": if a job record exists. In DEFERRED an aborted try is one whose trigger has failed, or one that cannot resume.

===========  ===========  ===========================================================================================
from         to           when
===========  ===========  ===========================================================================================
STARTING     NO_JOB       there is no job record
STARTING     EARLIER_JOB  a job record of an earlier try exists: ``Action.ASK``
EARLIER_JOB  NO_JOB       no earlier job of this task runs: ``Action.SUBMIT`` or ``FINISH``
EARLIER_JOB  SUBMITTING   an earlier submission may still arrive, and is repeated: ``Action.RESUBMIT``
EARLIER_JOB  FOLLOWING    this try follows the earlier job: ``Action.REATTACH``
EARLIER_JOB  DONE         the earlier job was stopped: ``Action.REPLACE``
NO_JOB       SUBMITTING   the new job record is stored
DONE         NO_JOB       the earlier job has ended, after ``Action.REPLACE``
SUBMITTING   FOLLOWING    Ray has the job
SUBMITTING   NO_JOB       no request arrived, or Ray refused all of them (``Delivery.may_have_effect`` is false)
FOLLOWING    RELEASED     ``wait_for_completion=False``
FOLLOWING    DEFERRED     the task is deferred
DEFERRED     FOLLOWING    the task resumes; its new ``Execution`` begins in DEFERRED
any other    DONE         the job ended or was stopped, or the try ends in a state other than DEFERRED and RELEASED
===========  ===========  ===========================================================================================

========================  ======================================================  ===================================
the try is aborted by     while it owns a job                                     otherwise
========================  ======================================================  ===================================
an error                  the job is left to the next try if that try can find    the error is raised; in NO_JOB, a
                          it, otherwise stopped                                   mistake ends the retries
a time limit of the job   ``abandoned`` is stored, then the job is stopped; if    does not happen
                          it ended before the stop, its own end decides
``execution_timeout``     like a time limit, but with ``stop_on_kill=False`` the  Airflow's timeout is raised
                          job is left alone
a kill                    an armed kill switch sends a stop, unless another try   an armed kill switch (RELEASED)
                          follows the job; then the try stops the job, and waits  sends a stop until Airflow has
                          for its end                                             the end of the try
Ctrl-C on ``dag.test()``  the job is stopped, unless ``stop_on_kill=False``       the interrupt is raised
========================  ======================================================  ===================================

Before any stop a try asks Airflow whether another try sees to the job. A process that did not run for minutes also asks
before it submits.
"""

from __future__ import annotations

from enum import Enum, auto


class State(Enum):
    """The state of a try. The tables above describe each one."""

    STARTING = auto()
    NO_JOB = auto()
    EARLIER_JOB = auto()
    SUBMITTING = auto()
    FOLLOWING = auto()
    RELEASED = auto()
    DEFERRED = auto()
    DONE = auto()

    @property
    def owns_job(self) -> bool:
        """Tell whether a recorded job may run that an aborted try must stop, or leave to the next try."""
        return self not in (State.NO_JOB, State.RELEASED, State.DONE)

    @property
    def is_armed(self) -> bool:
        """Tell whether a kill stops the job at once."""
        return self in (State.EARLIER_JOB, State.SUBMITTING, State.FOLLOWING, State.RELEASED)
