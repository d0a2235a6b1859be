"""Secrets that no log, message or database may contain. Each is used for one purpose."""

TOKEN = "m4rked-ray-token-8b1d"
WRONG_TOKEN = "m4rked-wrong-token-7c"
BASIC_PASSWORD, HEADER_VALUE, PROXY_PASSWORD = "m4rked-password-1c", "m4rked-header-2d", "m4rked-proxy-3e"
# Values in a job's env_vars: in a variable whose name is sensitive; the password of another Airflow connection; and one
# that nothing masks and no job prints.
NAMED_SECRET, CONNECTION_PASSWORD, UNPRINTED = "m4rked-by-name-4f", "m4rked-by-airflow-5a", "m4rked-quiet-6b"

SECRETS = (
    TOKEN,
    WRONG_TOKEN,
    BASIC_PASSWORD,
    HEADER_VALUE,
    PROXY_PASSWORD,
    NAMED_SECRET,
    CONNECTION_PASSWORD,
    UNPRINTED,
)
