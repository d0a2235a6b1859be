"""The description of the package for Airflow."""

from __future__ import annotations

import importlib
import json
from importlib.metadata import entry_points
from importlib.resources import files
from pathlib import Path

import jsonschema
import pytest

from airflow_provider_rayjobs import __version__, config
from airflow_provider_rayjobs.connection import EXTRAS
from airflow_provider_rayjobs.get_provider_info import get_provider_info
from airflow_provider_rayjobs.hooks import RayJobsHook
from airflow_provider_rayjobs.links import RayJobLink

ROOT = Path(__file__).parents[1]


def dotted_paths() -> list[str]:
    info = get_provider_info()
    modules = [
        module
        for part in ("hooks", "operators", "sensors", "triggers")
        for group in info[part]
        for module in group["python-modules"]
    ]
    return [*modules, *info["extra-links"], *(kind["hook-class-name"] for kind in info["connection-types"])]


def test_provider_info_is_valid_against_airflows_schema():
    """The dictionary is valid against the schema of the installed Airflow."""
    schema = json.loads(files("airflow").joinpath("provider_info.schema.json").read_text())

    jsonschema.validate(get_provider_info(), schema)


@pytest.mark.parametrize("path", dotted_paths())
def test_every_dotted_path_can_be_imported(path: str):
    """Every module and class that provider info names can be imported."""
    try:
        importlib.import_module(path)
    except ModuleNotFoundError:
        module, _, name = path.rpartition(".")
        assert hasattr(importlib.import_module(module), name)


def test_every_public_module_is_listed():
    """Every module with operators, sensors, triggers or hooks is in provider info."""
    package = ROOT / "airflow_provider_rayjobs"
    expected = {
        f"airflow_provider_rayjobs.{name}"
        for name in ("hooks", "operators", "cleanup", "sensors", "triggers", "event_triggers")
        if (package / f"{name}.py").exists()
    }

    assert expected <= set(dotted_paths())


def test_entry_point_is_get_provider_info():
    """Airflow finds the package by its entry point."""
    [entry_point] = [
        found
        for found in entry_points(group="apache_airflow_provider")
        if found.dist.name == "airflow-provider-rayjobs"
    ]

    assert entry_point.load() is get_provider_info


def test_connection_form_has_every_extra():
    """The form has the extras that the hook reads, and the hook has the names of the connection type."""
    [kind] = get_provider_info()["connection-types"]

    assert set(kind["conn-fields"]) == EXTRAS.keys()
    assert (kind["connection-type"], kind["hook-name"]) == (RayJobsHook.conn_type, RayJobsHook.hook_name)


def test_options_of_the_configuration_permit_nothing_by_default():
    """Airflow lists the options that permit files and classes. By default they are empty."""
    options = get_provider_info()["config"][config.SECTION]["options"]

    for name in ("deployment_name", "allowed_files", "allowed_auth_classes"):
        assert config.text(name) == ""
        assert options[name]["default"] == ""
    assert {option["version_added"] for option in options.values()} <= {__version__}


def test_link_has_its_own_xcom_key():
    """The link is stored under a key that no other link uses."""
    assert RayJobLink().xcom_key == "ray_job_link"
