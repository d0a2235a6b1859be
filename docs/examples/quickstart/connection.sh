export AIRFLOW_HOME="$PWD/airflow"
airflow connections add ray_jobs_default --conn-type ray_jobs --conn-host 127.0.0.1 --conn-port 8265
