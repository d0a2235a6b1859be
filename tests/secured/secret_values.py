"""Secrets that no log, message or database may contain. Each is used for one purpose."""

TOKEN = "m4rked-ray-token-8b1d"
WRONG_TOKEN = "m4rked-wrong-token-7c"
# The header's name is not sensitive, but its value looks random.
BASIC_PASSWORD, HEADER_VALUE, PROXY_PASSWORD = "m4rked-password-1c", "m4rk3dheader2d7f", "m4rked-proxy-3e"
# A number in a job's env_vars, and the password in the URL of a package index.
NUMBER, URL_PASSWORD = "8473625190", "m4rked-in-url-7f"
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
    NUMBER,
    URL_PASSWORD,
)
