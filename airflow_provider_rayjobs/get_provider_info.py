"""What Airflow reads about this package: its modules, the connection type and the connection form. No logic."""

from __future__ import annotations

from typing import Any


def get_provider_info() -> dict[str, Any]:
    """
    Return the provider's description, valid against Airflow's ``provider_info.schema.json``.

    Airflow 3.2 and later builds the connection form from it. Airflow 3.1 shows its plain form.
    """
    return {
        "package-name": "airflow-provider-rayjobs",
        "name": "Ray Jobs",
        "description": "Submit jobs to Ray clusters and follow them, with their logs and errors.",
        "integrations": [
            {
                "integration-name": "Ray Jobs",
                "external-doc-url": "https://docs.ray.io/en/latest/cluster/running-applications/job-submission/",
                "tags": ["service"],
            }
        ],
        "connection-types": [
            {
                "connection-type": "ray_jobs",
                "hook-name": "Ray Jobs",
                "hook-class-name": "airflow_provider_rayjobs.hooks.RayJobsHook",
                "ui-field-behaviour": {
                    "hidden-fields": [],
                    "relabeling": {
                        "login": "Login (for a proxy with basic authentication)",
                        "password": "Ray token, or password of the login",
                        "schema": "Schema (http or https)",
                    },
                    "placeholders": {"host": "ray-head.example.com", "port": "8265", "schema": "http"},
                },
                "conn-fields": _connection_fields(),
            }
        ],
        "hooks": [{"integration-name": "Ray Jobs", "python-modules": ["airflow_provider_rayjobs.hooks"]}],
        "operators": [{"integration-name": "Ray Jobs", "python-modules": ["airflow_provider_rayjobs.operators"]}],
        "sensors": [{"integration-name": "Ray Jobs", "python-modules": ["airflow_provider_rayjobs.sensors"]}],
        "triggers": [{"integration-name": "Ray Jobs", "python-modules": ["airflow_provider_rayjobs.triggers"]}],
        "extra-links": ["airflow_provider_rayjobs.links.RayJobLink"],
    }


def _connection_fields() -> dict[str, Any]:
    return {
        "base_path": _text("Base path", "Path of the Ray dashboard behind an ingress, e.g. /team-a."),
        "dashboard_url": _text(
            "Dashboard URL",
            "URL of the dashboard for browsers, if it differs from the workers', e.g. https://ray.example.com/team-a.",
        ),
        "token": _secret("Ray token", "Only with a login. Without a login, enter the token as the password."),
        "token_file": _text(
            "Ray token file",
            "File with the token, on workers and triggerers, e.g. /var/run/secrets/ray/token. Read for each request.",
        ),
        "token_header": _text(
            "Token header", "X-Ray-Authorization, if a proxy needs the Authorization header for itself."
        ),
        "headers": _object("Headers", 'HTTP headers of each request as JSON, e.g. {"X-Api-Key": "..."}.'),
        "verify": _text(
            "Certificate check",
            "system (default), off, or the CA certificate file, e.g. /etc/ssl/company-ca.pem.",
        ),
        "client_cert": _text("Client certificate", "PEM file for mTLS, e.g. /etc/ssl/airflow.pem. May hold the key."),
        "client_key": _text("Client key", "PEM file with the certificate's key, e.g. /etc/ssl/airflow.key."),
        "client_key_password": _secret("Client key password", "Only for an encrypted key."),
        "proxy": _secret(
            "HTTP proxy", "E.g. http://user:password@proxy:3128. Default: the environment's HTTPS_PROXY and NO_PROXY."
        ),
        "connect_timeout": _seconds("Connect timeout", "Seconds to connect, e.g. 5. Default: 10."),
        "read_timeout": _seconds(
            "Read timeout", "Seconds until the next bytes of an answer, e.g. 60. Default: 30; a submission has 120."
        ),
        "auth": _text("Auth class", "Your subclass of httpx.Auth, e.g. my_company.iap.IapAuth."),
        "auth_kwargs": _object("Auth arguments", 'Arguments of that class as JSON, e.g. {"audience": "..."}.'),
    }


def _field(label: str, description: str, **schema: Any) -> dict[str, Any]:
    return {"label": label, "description": description, "schema": schema}


def _text(label: str, description: str) -> dict[str, Any]:
    return _field(label, description, type=["string", "null"])


def _secret(label: str, description: str) -> dict[str, Any]:
    return _field(label, description, type=["string", "null"], format="password")


def _seconds(label: str, description: str) -> dict[str, Any]:
    return _field(label, description, type=["number", "null"])


def _object(label: str, description: str) -> dict[str, Any]:
    return _field(label, description, type=["object", "null"])
