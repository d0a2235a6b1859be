"""Send a program, a module and data to the cluster."""

import pendulum
from airflow.sdk import DAG

from airflow_provider_rayjobs.operators import RayJobSubmitOperator

with DAG("local_code", schedule=None, start_date=pendulum.datetime(2026, 1, 1, tz="UTC"), tags=["ray"]):
    # START shortest
    RayJobSubmitOperator(
        task_id="predict",
        entrypoint=["python", "predict.py", "--day", "{{ ds }}"],
        runtime_env={
            "working_dir": "./forecast",
            "py_modules": ["./forecast_tools"],
            "excludes": ["*.ipynb", "/data"],
        },
    )
    # END shortest

    # START storage
    RayJobSubmitOperator(
        task_id="predict_with_large_code",
        entrypoint=["python", "predict.py", "--day", "{{ ds }}"],
        runtime_env={"working_dir": "./forecast", "py_modules": ["./forecast_tools"]},
        package_storage="file:///tmp/ray-code",  # or s3://aws_default@my-bucket/ray-code
    )
    # END storage
