python3 -m venv ray-airflow
. ray-airflow/bin/activate
pip install apache-airflow airflow-provider-rayjobs "ray[default]"
