export AIRFLOW_CONN_RAY_JOBS_DEFAULT='ray-jobs://:the-token@ray-head:8265'
