"""A pod that submits a job to a Ray cluster of KubeRay."""

from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.sdk import DAG

# START task
with DAG("before_kubernetes_pod_operator", schedule=None):
    KubernetesPodOperator(
        task_id="train",
        namespace="ray",
        image="registry.example.com/training:1.4",
        cmds=["ray", "job", "submit"],
        arguments=["--working-dir", "/training", "--", "python", "nightly.py", "--day", "{{ ds }}"],
        env_vars={"RAY_ADDRESS": "http://nightly-head-svc.ray:8265"},
        startup_timeout_seconds=600,
        deferrable=True,
        logging_interval=60,
    )
# END task
