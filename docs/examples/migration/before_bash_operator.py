"""A task that runs Ray's command line."""

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG

# START task
SUBMIT = """\
ray job submit --address http://ray-head:8265 --working-dir training \
  --runtime-env-json '{"env_vars": {"LEVEL": "debug"}}' \
  --metadata-json '{"team": "forecasts"}' --entrypoint-num-cpus 1 \
  -- python nightly.py --day {{ ds }}
"""

with DAG("before_bash_operator", schedule=None):
    BashOperator(task_id="train", bash_command=SUBMIT, cwd="{{ task.dag.folder }}")
# END task
