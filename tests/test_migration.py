"""Names of other ways to run Ray jobs: the errors about them lead to the migration pages, which have them all."""

from __future__ import annotations

import functools
import tomllib
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import BaseOperator, Connection

from airflow_provider_rayjobs import migration
from airflow_provider_rayjobs.connection import EXTRAS, parse_connection
from airflow_provider_rayjobs.decorators import ray_job
from airflow_provider_rayjobs.operators import RayJobDeleteOperator, RayJobStopOperator, RayJobSubmitOperator
from airflow_provider_rayjobs.sensors import RayJobSensor
from airflow_provider_rayjobs.triggers import RayJobTrigger

ROOT = Path(__file__).parents[1]
GIVEN: dict[str, Any] = {"conn_id": "ray_conn", "num_cpus": 2, "ray_cluster_yaml": "cluster.yaml"}
HINT = (
    "has no argument conn_id, num_cpus, ray_cluster_yaml. That is from astro-provider-ray: conn_id is ray_conn_id "
    f"here, num_cpus is entrypoint_num_cpus here. See {migration.ASTRO.where}."
)


def test_arguments_of_the_operator():
    """Arguments of SubmitRayJob are an error that has the new names and leads to the page."""
    with pytest.raises(TypeError) as caught:
        RayJobSubmitOperator(task_id="train", entrypoint="true", **GIVEN)

    assert str(caught.value) == f"RayJobSubmitOperator {HINT}"


def test_arguments_of_several_origins():
    """Arguments of Ray's client and its command line are an error that has the new names and leads to both pages."""
    given: dict[str, Any] = {"address": "http://head:8265", "working_dir": "."}
    with pytest.raises(TypeError) as caught:
        RayJobSubmitOperator(task_id="train", entrypoint="true", **given)

    assert str(caught.value) == (
        "RayJobSubmitOperator has no argument address, working_dir. That is from Ray's JobSubmissionClient: address is "
        f"ray_conn_id here. See {migration.SDK.where}. That is from ray job submit: working_dir is "
        f'runtime_env["working_dir"] here. See {migration.CLI.where}.'
    )


@pytest.mark.parametrize(
    ("option", "guess", "origin"),
    [
        ("conn_id", " Did you mean 'ray_conn_id'?", migration.ASTRO),
        ("memory", " Did you mean 'entrypoint_memory'?", migration.ASTRO),
        ("config", "", migration.ASTRO),
        ("get_job_logs", " Did you mean 'fetch_logs'?", migration.GOOGLE),
    ],
)
def test_options_of_the_decorator(option: str, guess: str, origin: migration.Origin):
    """An old option is an error that has the new name and leads to the page."""
    with pytest.raises(TypeError) as caught:
        ray_job(**{option: 1})

    page = f"For {origin.name} see {origin.where}."
    assert str(caught.value) == f"@task.ray_job has no option {option!r}.{guess} {page}"


def test_arguments_of_a_mapped_task():
    """``partial`` has the same error."""
    with pytest.raises(TypeError) as caught:
        RayJobSubmitOperator.partial(task_id="train", **GIVEN)

    assert str(caught.value) == f"RayJobSubmitOperator {HINT}"


def test_old_name_of_a_required_argument():
    """An old name is an error about that name, not about the argument that is missing because of it."""
    given: dict[str, Any] = {"job_id": "x", "gcp_conn_id": "g"}
    with pytest.raises(TypeError) as caught:
        RayJobStopOperator(task_id="stop", **given)

    assert str(caught.value) == (
        "RayJobStopOperator has no argument job_id, gcp_conn_id. That is from Google's RaySubmitJobOperator: "
        f"gcp_conn_id is ray_conn_id here. See {migration.GOOGLE.where}. That is from Ray's JobSubmissionClient: "
        f"job_id is submission_id here. See {migration.SDK.where}."
    )


@pytest.mark.parametrize(
    ("operator", "wrong", "guess"),
    [
        (RayJobSubmitOperator, "entrypoint_num_cpu", "entrypoint_num_cpus"),
        (RayJobSubmitOperator, "entrypont", "entrypoint"),
        (RayJobSubmitOperator, "retry", "retries"),
        (RayJobStopOperator, "stop_timout", "stop_timeout"),
        (RayJobDeleteOperator, "missing_okay", "missing_ok"),
        (RayJobSensor, "poke_intervall", "poke_interval"),
    ],
)
def test_typo(operator: Any, wrong: str, guess: str):
    """A typo in an argument, of this package or of Airflow, is an error with the nearest known name."""
    error = f"^{operator.__name__} has no argument {wrong}. Did you mean {guess}\\?$"

    for create in (operator, operator.partial):
        with pytest.raises(TypeError, match=error):
            create(task_id="train", **{wrong: 1})


def test_other_arguments():
    """About other arguments Airflow itself raises its error."""
    given: dict[str, Any] = {"image": "x"}
    with pytest.raises(TypeError, match="Invalid arguments were passed to RayJobSubmitOperator"):
        RayJobSubmitOperator(task_id="train", entrypoint="true", **given)


def test_argument_of_a_subclass():
    """The constructor of a subclass may take arguments that look wrong here."""

    class Train(RayJobSubmitOperator):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(entrypoint_memory=kwargs.pop("memory"), **kwargs)

    given: dict[str, Any] = {"memory": 5}
    assert Train(task_id="train", entrypoint="true", **given).entrypoint_memory == 5


def test_argument_of_a_mixin():
    """Behind our constructors another one may take arguments that look wrong here, without naming them."""

    class Team(BaseOperator):
        def __init__(self, **kwargs: Any) -> None:
            team = kwargs.pop("owner_team")
            super().__init__(**kwargs)
            self.team = team

    class Train(RayJobSubmitOperator, Team):
        pass

    given: dict[str, Any] = {"owner_team": "ml"}
    assert Train(task_id="train", entrypoint="true", **given).team == "ml"


def test_argument_of_a_wrapped_constructor():
    """A constructor with the signature of ours, for type checkers, may take arguments that look wrong here."""

    class Train(RayJobSubmitOperator):
        @functools.wraps(RayJobSubmitOperator.__init__)
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(entrypoint_memory=kwargs.pop("memory"), **kwargs)

    given: dict[str, Any] = {"memory": 5}
    assert Train(task_id="train", entrypoint="true", **given).entrypoint_memory == 5


def test_argument_of_a_hook():
    """A subclass may replace its arguments in the hook that Airflow calls before a constructor."""

    class Train(RayJobSubmitOperator):
        def _hook_apply_defaults(self, **kwargs: Any) -> Any:
            if "memory" in kwargs:
                kwargs["entrypoint_memory"] = kwargs.pop("memory")
            return (), kwargs

    given: dict[str, Any] = {"memory": 5}
    assert Train(task_id="train", entrypoint="true", **given).entrypoint_memory == 5


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        ("conn_id", f" That is from astro-provider-ray: conn_id is ray_conn_id here. See {migration.ASTRO.where}."),
        ("stop_on_kil", " Did you mean stop_on_kill?"),
        ("colour", ""),
    ],
)
def test_arguments_of_the_trigger(wrong: str, hint: str):
    """An argument that the trigger does not have is an error, unless the arguments are those of a stored trigger."""
    with pytest.raises(TypeError) as caught:
        RayJobTrigger("job-1", **{wrong: "x"})

    assert str(caught.value) == f"RayJobTrigger has no argument {wrong}.{hint}"
    _, stored = RayJobTrigger("job-1").serialize()
    assert RayJobTrigger(**stored, **{wrong: "x"}).serialize()[1] == stored


def test_extras_of_the_connection():
    """Extras of the old connection are an error that has the new names and leads to the page."""
    extra = '{"address": "http://head:8265", "verify": false, "kube_config": "secret"}'
    connection = Connection(conn_id="ray_conn", conn_type="ray", extra=extra)

    with pytest.raises(ValueError, match="unknown extra") as caught:
        parse_connection(connection)
    assert str(caught.value) == (
        "connection ray_conn: unknown extra address, kube_config. That is from astro-provider-ray: address is host "
        f"here. See {migration.ASTRO.where}."
    )


def test_new_names_exist():
    """The new names are arguments of the operator, and fields of the connection."""
    operator = RayJobSubmitOperator(task_id="train", entrypoint="true")
    arguments = [pair for origin in migration.ORIGINS for pair in origin.arguments.items()]

    assert all(hasattr(operator, new.partition("[")[0]) for _, new in arguments if new)
    assert {name for name in migration.EXTRAS.values() if name} <= {"host", *EXTRAS}
    assert not any(hasattr(operator, old) for old, _ in arguments)
    assert EXTRAS.keys().isdisjoint(migration.EXTRAS)


def test_each_name_has_one_origin():
    """No name belongs to two origins, so that an error leads to one page for it."""
    names = [name for origin in migration.ORIGINS for name in origin.arguments]

    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize("origin", migration.ORIGINS, ids=lambda origin: origin.name)
def test_page_has_every_name(origin: migration.Origin):
    """The migration page has every old name and its new one. A page about a command has its options."""
    pages = [path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "migration").glob("*.md")]
    [page] = [text for text in pages if text.startswith(f"# {origin.page}\n")]
    names = {**origin.arguments, **(migration.EXTRAS if origin is migration.ASTRO else {})}
    old = {f"--{name.replace('_', '-')}" if origin is migration.CLI else name for name in names}

    assert [name for name in {*old, *names.values()} - {""} if f"`{name}`" not in page] == []


def test_messages_have_the_address_of_the_documentation():
    """Messages lead to the address of the documentation, as soon as the package has one."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    assert project.get("urls", {}).get("Documentation", "") in migration.DOCUMENTATION
