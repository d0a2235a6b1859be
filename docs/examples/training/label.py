"""What a data scientist runs in a notebook: a job that Airflow did not start."""

import ray
from ray.job_config import JobConfig

ray.init(job_config=JobConfig(metadata={"purpose": "labelling", "job_name": "labels"}))
print("labelled the trips")
ray.shutdown()
