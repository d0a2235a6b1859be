"""A task that creates a RayJob of KubeRay."""

from airflow.providers.cncf.kubernetes.operators.resource import KubernetesCreateResourceOperator
from airflow.sdk import DAG

# START task
RAY_JOB = """\
apiVersion: ray.io/v1
kind: RayJob
metadata:
  name: nightly-{{ ds_nodash }}
  namespace: ray
spec:
  clusterSelector:
    ray.io/cluster: nightly
  entrypoint: python nightly.py --day {{ ds }}
  runtimeEnvYAML: |
    working_dir: https://files.example.com/training-1.4.zip
  entrypointNumCpus: 1
  activeDeadlineSeconds: 3600
"""

with DAG("before_kubernetes_ray_job", schedule=None):
    KubernetesCreateResourceOperator(task_id="train", yaml_conf=RAY_JOB, custom_resource_definition=True)
# END task
