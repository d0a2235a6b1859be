export AIRFLOW_CONN_RAY_JOBS_DEFAULT='{
    "conn_type": "ray_jobs",
    "schema": "https",
    "host": "ray.example.com",
    "port": 8443,
    "login": "me",
    "password": "its password",
    "extra": {
        "base_path": "/team-a",
        "token": "the token of Ray",
        "verify": "system",
        "headers": {"X-Tenant": "a"},
        "read_timeout": 60
    }
}'
