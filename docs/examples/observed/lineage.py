"""A program whose OpenLineage events are below its task."""

# START lineage
import os
from datetime import UTC, datetime

from openlineage.client import OpenLineageClient
from openlineage.client.event_v2 import Job, Run, RunEvent, RunState
from openlineage.client.facet_v2 import parent_run
from openlineage.client.uuid import generate_new_uuid

namespace, name, run_id = os.environ["OPENLINEAGE_PARENT_ID"].rsplit("/", 2)
task = parent_run.Job(namespace, name)
parent = parent_run.ParentRunFacet(parent_run.Run(run_id), task)
run = Run(str(generate_new_uuid()), facets={"parent": parent})
client = OpenLineageClient()
for state in (RunState.START, RunState.COMPLETE):
    now = datetime.now(UTC).isoformat()
    job = Job("ray", "train")
    client.emit(RunEvent(eventTime=now, eventType=state, run=run, job=job))
# END lineage
