"""Names of astro-provider-ray: the errors about them lead to the migration page, which has them all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import Connection

from airflow_provider_rayjobs import migration
from airflow_provider_rayjobs.connection import EXTRAS, parse_connection
from airflow_provider_rayjobs.decorators import ray_job
from airflow_provider_rayjobs.operators import RayJobSubmitOperator

ROOT = Path(__file__).parents[1]
GIVEN: dict[str, Any] = {"conn_id": "ray_conn", "num_cpus": 2, "ray_cluster_yaml": "cluster.yaml"}
HINT = (
    "has no argument conn_id, num_cpus, ray_cluster_yaml. That is from astro-provider-ray: conn_id is ray_conn_id "
    "here, num_cpus is entrypoint_num_cpus here. See docs/MIGRATING.md of this provider."
)


def test_arguments_of_the_operator():
    """Arguments of SubmitRayJob are an error that has the new names and leads to the page."""
    with pytest.raises(TypeError) as caught:
        RayJobSubmitOperator(task_id="train", entrypoint="true", **GIVEN)

    assert str(caught.value) == f"RayJobSubmitOperator {HINT}"


@pytest.mark.parametrize(
    ("option", "guess"),
    [("conn_id", " Did you mean 'ray_conn_id'?"), ("memory", " Did you mean 'entrypoint_memory'?"), ("config", "")],
)
def test_options_of_the_decorator(option: str, guess: str):
    """An option of @ray.task is an error that has the new name and leads to the page."""
    with pytest.raises(TypeError) as caught:
        ray_job(**{option: 1})

    page = "For astro-provider-ray see docs/MIGRATING.md of this provider."
    assert str(caught.value) == f"@task.ray_job has no option {option!r}.{guess} {page}"


def test_other_arguments():
    """About other arguments Airflow itself raises its error."""
    with pytest.raises(TypeError, match="Invalid arguments were passed to RayJobSubmitOperator"):
        RayJobSubmitOperator(task_id="train", entrypoint="true", num_cpu=2)


def test_extras_of_the_connection():
    """Extras of the old connection are an error that has the new names and leads to the page."""
    extra = '{"address": "http://head:8265", "verify": false, "kube_config": "secret"}'
    connection = Connection(conn_id="ray_conn", conn_type="ray", extra=extra)

    with pytest.raises(ValueError, match="unknown extra") as caught:
        parse_connection(connection)
    assert str(caught.value) == (
        "connection ray_conn: unknown extra address, kube_config. That is from astro-provider-ray: address is host "
        "here. See docs/MIGRATING.md of this provider."
    )


def test_new_names_exist():
    """The new names are arguments of the operator, and fields of the connection."""
    operator = RayJobSubmitOperator(task_id="train", entrypoint="true")

    assert all(hasattr(operator, name) for name in migration.ARGUMENTS.values() if name)
    assert {name for name in migration.EXTRAS.values() if name} <= {"host", *EXTRAS}
    assert not any(hasattr(operator, name) for name in migration.ARGUMENTS)
    assert EXTRAS.keys().isdisjoint(migration.EXTRAS)


def test_page_has_every_name():
    """The migration page has every old name and its new one."""
    page = (ROOT / migration.PAGE).read_text(encoding="utf-8")
    names = {**migration.ARGUMENTS, **migration.EXTRAS}

    assert [name for name in {*names, *names.values()} - {""} if f"`{name}`" not in page] == []
