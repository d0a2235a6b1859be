"""Connect to a cluster behind a proxy with a login."""

import os

# START client
from airflow_provider_rayjobs.jobs import Access, RayJobsClient

access = Access(
    token=os.environ["RAY_TOKEN"],
    login="me",
    password=os.environ["PROXY_PASSWORD"],
    verify="system",
    read_timeout=60,
)
with RayJobsClient(os.environ["RAY_API_SERVER_ADDRESS"], access=access) as client:
    print(client.get_version().ray_version)
# END client
