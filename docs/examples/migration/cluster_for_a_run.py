"""A Ray cluster of KubeRay that lives as long as a DAG run."""

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG

from airflow_provider_rayjobs.operators import RayJobSubmitOperator

# START tasks
with DAG("cluster_for_a_run", schedule=None, max_active_runs=1):
    create = BashOperator(
        task_id="create_cluster",
        bash_command="kubectl apply -f cluster.yaml && kubectl wait -f cluster.yaml"
        " --for=condition=RayClusterProvisioned --timeout=10m",
        cwd="{{ task.dag.folder }}",
    )
    train = RayJobSubmitOperator(
        task_id="train",
        entrypoint=["python", "nightly.py", "--day", "{{ ds }}"],
        runtime_env={"working_dir": "./training"},
    )
    delete = BashOperator(
        task_id="delete_cluster",
        bash_command="kubectl delete -f cluster.yaml --ignore-not-found",
        cwd="{{ task.dag.folder }}",
    )
    create >> train >> delete.as_teardown(setups=create)
# END tasks
