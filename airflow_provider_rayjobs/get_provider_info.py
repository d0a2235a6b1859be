"""What Airflow reads about this package: connection type and form, modules, the link. No logic."""

from __future__ import annotations

from typing import Any


def get_provider_info() -> dict[str, Any]:
    """
    Return the provider's description, valid against Airflow's ``provider_info.schema.json``.

    ``conn-fields`` and ``ui-field-behaviour`` make the connection form on Airflow 3.2 and later; 3.1 passes
    over them and shows its plain form.
    """
    return {
        "package-name": "airflow-provider-rayjobs",
        "name": "Ray Jobs",
        "description": "Submit Ray jobs from Airflow, follow them to their end, with their logs and their errors.",
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
                        "login": "Login (basic authentication of a proxy)",
                        "password": "Token, or the login's password",
                        "schema": "Schema (http or https)",
                    },
                    "placeholders": {"host": "ray-head.example.com", "port": "8265", "schema": "http"},
                },
                "conn-fields": {
                    "base_path": _text(
                        "Base path", "Where an ingress puts the Ray dashboard below its host, e.g. /team-a."
                    ),
                    "dashboard_url": _text(
                        "Dashboard address for browsers",
                        "Where the button 'Ray job' leads, if browsers reach the dashboard under another address than "
                        "workers do, e.g. https://ray.example.com/team-a.",
                    ),
                    "token": _secret(
                        "Ray token",
                        "Ray's authentication token, where the password belongs to a login. Otherwise it "
                        "is the password.",
                    ),
                    "token_file": _text(
                        "Ray token file",
                        "A file on the workers (and the triggerer) that holds the token, read again for each request: "
                        "for tokens that rotate, e.g. /var/run/secrets/ray/token.",
                    ),
                    "token_header": _text(
                        "Header of the token",
                        "X-Ray-Authorization, where a proxy keeps Authorization to itself. With a login, an auth or an "
                        "Authorization among the headers that goes without saying.",
                    ),
                    "headers": _object(
                        "Headers", 'Sent with each request, as JSON: {"X-Api-Key": "..."}. Their values are secret.'
                    ),
                    "verify": _text(
                        "Certificates to believe",
                        "system (the default) for those of the machine; the path of a file with the certificate of a "
                        "private authority; off for no check, with a warning each time.",
                    ),
                    "client_cert": _text(
                        "Client certificate", "A PEM file with our certificate, for mTLS; its key may be in it."
                    ),
                    "client_key": _text("Client key", "A PEM file with the key of the client certificate."),
                    "client_key_password": _secret("Password of the client key", "Of an encrypted key."),
                    "proxy": _secret(
                        "Proxy",
                        "Through which all requests go, e.g. http://user:password@proxy:3128. HTTPS_PROXY and NO_PROXY "
                        "of the environment count when empty.",
                    ),
                    "connect_timeout": _seconds("Time to connect", "In seconds; 10 when empty."),
                    "read_timeout": _seconds(
                        "Time to answer",
                        "In seconds, for the next bytes of an answer; 30 when empty. A submission has 120 in any case.",
                    ),
                    "auth": _text(
                        "Class for authentication",
                        "A class of yours of the kind httpx.Auth, for anything else: my_company.iap.IapAuth.",
                    ),
                    "auth_kwargs": _object(
                        "Its arguments", 'What that class is made with, as JSON: {"audience": "..."}.'
                    ),
                },
            }
        ],
        "hooks": [{"integration-name": "Ray Jobs", "python-modules": ["airflow_provider_rayjobs.hooks"]}],
        "operators": [{"integration-name": "Ray Jobs", "python-modules": ["airflow_provider_rayjobs.operators"]}],
        "sensors": [{"integration-name": "Ray Jobs", "python-modules": ["airflow_provider_rayjobs.sensors"]}],
        "triggers": [{"integration-name": "Ray Jobs", "python-modules": ["airflow_provider_rayjobs.triggers"]}],
        "extra-links": ["airflow_provider_rayjobs.links.RayJobLink"],
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
