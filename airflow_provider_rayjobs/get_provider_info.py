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
                    "hidden-fields": ["login"],
                    "relabeling": {"password": "Token", "schema": "Schema (http or https)"},
                    "placeholders": {"host": "ray-head.example.com", "port": "8265", "schema": "http"},
                },
                "conn-fields": {
                    "base_path": {
                        "label": "Base path",
                        "description": "Where an ingress puts the Ray dashboard below its host, e.g. /team-a.",
                        "schema": {"type": ["string", "null"]},
                    },
                    "dashboard_url": {
                        "label": "Dashboard address for browsers",
                        "description": (
                            "Where the button 'Ray job' leads, if browsers reach the dashboard under another address "
                            "than workers do, e.g. https://ray.example.com/team-a."
                        ),
                        "schema": {"type": ["string", "null"]},
                    },
                    "agent_log_access": {
                        "label": "Access to agents",
                        "description": (
                            "Whether the agent of a driver's node is asked for what is new in a large log: no, yes "
                            "(without credentials) or with_credentials."
                        ),
                        "schema": {"type": ["string", "null"]},
                    },
                },
            }
        ],
        "hooks": [{"integration-name": "Ray Jobs", "python-modules": ["airflow_provider_rayjobs.hooks"]}],
        "operators": [{"integration-name": "Ray Jobs", "python-modules": ["airflow_provider_rayjobs.operators"]}],
        "sensors": [{"integration-name": "Ray Jobs", "python-modules": ["airflow_provider_rayjobs.sensors"]}],
        "triggers": [{"integration-name": "Ray Jobs", "python-modules": ["airflow_provider_rayjobs.triggers"]}],
        "extra-links": ["airflow_provider_rayjobs.links.RayJobLink"],
    }
