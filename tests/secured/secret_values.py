"""Secrets that must be found nowhere, each of them used for one thing."""

TOKEN = "m4rked-ray-token-8b1d"
WRONG = "m4rked-wrong-token-7c"
PASSWORD, HEADER, PROXY = "m4rked-password-1c", "m4rked-header-2d", "m4rked-proxy-3e"
# of a job's env_vars: told by its name; known to Airflow as a connection's password; neither
BY_NAME, BY_AIRFLOW, QUIET = "m4rked-by-name-4f", "m4rked-by-airflow-5a", "m4rked-quiet-6b"

SECRETS = (TOKEN, WRONG, PASSWORD, HEADER, PROXY, BY_NAME, BY_AIRFLOW, QUIET)
