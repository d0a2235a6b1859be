"""Print what a job knows about itself and its task."""

import os

if __name__ == "__main__":
    print("task:", os.environ["AIRFLOW_CTX_DAG_ID"], os.environ["AIRFLOW_CTX_TASK_ID"])
    print("run:", os.environ["AIRFLOW_CTX_DAG_RUN_ID"], "try:", os.environ["AIRFLOW_CTX_TRY_NUMBER"])
    print("job:", os.environ["RAY_JOB_SUBMISSION_ID"])
