export AIRFLOW_CONN_RAY_JOBS_DEFAULT='{
    "conn_type": "ray_jobs",
    "host": "ray-head",
    "extra": {"history_url": "https://history.example.com/#/jobs/{submission_id}"}
}'
