"""Describe the modules, the connection type and the connection form of this package to Airflow."""

from __future__ import annotations

from typing import Any


def get_provider_info() -> dict[str, Any]:
    """
    Return the provider's description, valid against Airflow's ``provider_info.schema.json``.

    Airflow 3.2 and later builds the connection form from it. Airflow 3.1 shows its generic form.
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
                        "login": "Login (of a proxy)",
                        "password": "Ray token or password",
                        "schema": "Schema (http or https)",
                    },
                    "placeholders": {"host": "ray-head.example.com", "port": "8265", "schema": "http"},
                },
                "conn-fields": _connection_fields(),
            }
        ],
        "hooks": [{"integration-name": "Ray Jobs", "python-modules": ["airflow_provider_rayjobs.hooks"]}],
        "operators": [
            {
                "integration-name": "Ray Jobs",
                "python-modules": ["airflow_provider_rayjobs.operators", "airflow_provider_rayjobs.cleanup"],
            }
        ],
        "sensors": [{"integration-name": "Ray Jobs", "python-modules": ["airflow_provider_rayjobs.sensors"]}],
        "triggers": [
            {
                "integration-name": "Ray Jobs",
                "python-modules": ["airflow_provider_rayjobs.triggers", "airflow_provider_rayjobs.event_triggers"],
            }
        ],
        "task-decorators": [{"class-name": "airflow_provider_rayjobs.decorators.ray_job", "name": "ray_job"}],
        "extra-links": ["airflow_provider_rayjobs.links.RayJobLink"],
        "config": {
            "ray_jobs": {
                "description": "Defaults of tasks, what connections may use, and the name of this Airflow.",
                "options": {
                    "poll_interval": _option(
                        "Seconds between two polls of a job, for operators and sensors that set no interval of their "
                        "own. A poll costs the head 4 ms.",
                        example="30",
                        default="5.0",
                        kind="float",
                    ),
                    "unreachable_timeout": _option(
                        "Seconds for which an outage of a cluster is tolerated, for operators and sensors that set no "
                        "unreachable_timeout.",
                        example="1800",
                        default="600.0",
                        kind="float",
                    ),
                    "first_contact_timeout": _option(
                        "Seconds for which a task retries its first connection to a cluster, before it submits a job, "
                        "for operators that set no first_contact_timeout. A lost connection is an outage.",
                        example="300",
                        default="90.0",
                        kind="float",
                    ),
                    "stop_on_kill": _option(
                        "Whether a job is stopped when its task is cleared, marked or timed out, or when its worker "
                        "shuts down, for operators that set no stop_on_kill.",
                        example="False",
                        default="True",
                        kind="boolean",
                    ),
                    "log_budget": _option(
                        "Bytes per second that all deferred tasks of a triggerer together may write into their logs. "
                        "The worker that resumes a task shows the rest. A triggerer logs less than 1 MB per second, "
                        "and more than that stops all of its triggers.",
                        example="65536",
                        default="32768",
                        kind="integer",
                    ),
                    "deployment_name": _option(
                        "The name of this Airflow among those that use the same Ray cluster. RayJobCleanupOperator "
                        "stops and deletes jobs with this name only. Set it on all workers.",
                        example="production",
                    ),
                    "allowed_files": _option(
                        "Files that connections may use as token_file, client_cert and client_key: absolute paths, "
                        "separated by commas; * stands for any characters but a slash. Anyone who may edit a "
                        "connection can send the line in such a file to any host. By default no file is allowed.",
                        example="/var/run/secrets/ray/*",
                    ),
                    "allowed_auth_classes": _option(
                        "Classes that connections may use as auth, separated by commas. By default no class is "
                        "allowed. The import of a class runs its module.",
                        example="my_company.iap.IapAuth",
                    ),
                },
            }
        },
    }


def _option(description: str, example: str, default: str = "", kind: str = "string") -> dict[str, Any]:
    return {
        "description": description, "version_added": "0.1.0", "type": kind, "example": example, "default": default,
    }  # fmt: skip


def _connection_fields() -> dict[str, Any]:
    return {
        "base_path": _field("Base path", "Path of the Ray dashboard behind an ingress, e.g. /team-a."),
        "dashboard_url": _field(
            "Dashboard URL", "If browsers need another URL than workers, e.g. https://ray.example.com/team-a."
        ),
        "history_url": _field(
            "History URL", "Of an ended job's page, e.g. https://history.example.com/#/jobs/{submission_id}."
        ),
        "token": _field("Ray token", "Only with a login. Without one, the token is the password.", format="password"),
        "token_file": _field(
            "Ray token file",
            "Read for each request, e.g. /var/run/secrets/ray/token. Allowed by [ray_jobs] allowed_files.",
        ),
        "token_header": _field("Token header", "X-Ray-Authorization, if a proxy needs the Authorization header."),
        "headers": _field("Headers", 'HTTP headers of each request as JSON, e.g. {"X-Api-Key": "..."}.', "object"),
        "verify": _field("Certificate check", "system (default), off, or a CA file, e.g. /etc/ssl/company-ca.pem."),
        "client_cert": _field(
            "Client certificate", "PEM file for mTLS, e.g. /etc/ssl/me.pem. Must be in allowed_files."
        ),
        "client_key": _field("Client key", "PEM file with its key, unless the certificate's file holds it."),
        "client_key_password": _field("Client key password", "Only for an encrypted key.", format="password"),
        "proxy": _field(
            "HTTP proxy", "E.g. http://me:password@proxy:3128. Default: HTTPS_PROXY and NO_PROXY.", format="password"
        ),
        "connect_timeout": _field("Connect timeout", "Seconds to connect, e.g. 5. Default: 10.", "number"),
        "read_timeout": _field("Read timeout", "Seconds to wait for an answer, e.g. 60. Default: 30.", "number"),
        "auth": _field("Auth class", "A class in [ray_jobs] allowed_auth_classes."),
        "auth_kwargs": _field("Auth arguments", 'Arguments of that class as JSON, e.g. {"audience": "..."}.', "object"),
    }


def _field(label: str, description: str, kind: str = "string", **schema: str) -> dict[str, Any]:
    return {"label": label, "description": description, "schema": {"type": [kind, "null"], **schema}}
