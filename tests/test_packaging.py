"""The sdist and the wheel that users install."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import distributions, version
from pathlib import Path

import pytest

from airflow_provider_rayjobs import __version__

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist of this checkout, and the wheel built from it with the installed build backend."""
    target = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", target, ROOT],
        check=True, capture_output=True, timeout=300,
    )  # fmt: skip
    return target


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    [built] = dist.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which the installed wheel has precedence over this checkout."""
    target = tmp_path_factory.mktemp("site")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", target, wheel],
        check=True, capture_output=True, timeout=300,
    )  # fmt: skip
    return os.environ | {"PYTHONPATH": str(target), "AIRFLOW_HOME": str(tmp_path_factory.mktemp("home"))}


def test_wheel_contains_the_package_only(wheel: Path):
    """The wheel contains the package, its licence and its metadata, and no tests or examples."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names}

    assert tops == {"airflow_provider_rayjobs", f"airflow_provider_rayjobs-{__version__}.dist-info"}
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert "airflow_provider_rayjobs/py.typed" in names


def test_sdist_has_what_the_commands_of_the_readme_need(dist: Path):
    """In an unpacked sdist the commands of the README and of the contributors' page find all their files."""
    [sdist] = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = {
        "Makefile", "constraints.txt", "requirements-dev.txt", "pyproject.toml", ".pre-commit-config.yaml", ".ci/run",
        ".github/workflows/ci.yml", "benchmarks/__main__.py", "sandbox/demo.py", "tests/conftest.py", "docs/conf.py",
    }  # fmt: skip

    assert needed - names == set()


def test_wheel_requires_what_a_worker_has(wheel: Path):
    """The wheel requires Airflow, common-compat, httpx, certifi, msgspec, pendulum and pyyaml; Ray is an extra."""
    with zipfile.ZipFile(wheel) as archive:
        metadata = archive.read(f"airflow_provider_rayjobs-{__version__}.dist-info/METADATA").decode()
    requirements = re.findall(r"^Requires-Dist: (.+)$", metadata, re.MULTILINE)

    assert sorted(line for line in requirements if "extra ==" not in line) == [
        "apache-airflow-providers-common-compat>=1.12.0",
        "apache-airflow>=3.1",
        "certifi",
        "httpx",
        "msgspec",
        "pendulum",
        "pyyaml",
    ]
    assert [line for line in requirements if "extra ==" in line] == ["ray[default]>=2.40; extra == 'ray'"]


def test_package_index_accepts_the_distributions(dist: Path):
    """``twine check`` has no objection, and no warning, to sdist and wheel."""
    files = sorted(dist.iterdir())
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *files], check=True, timeout=60)

    assert [path.suffix for path in files] == [".whl", ".gz"]


def test_installation_changes_no_other_package(dist: Path, wheel: Path, tmp_path: Path):
    """In an environment with a pinned Airflow, ``pip install`` adds this package only, from wheel and sdist."""
    python = tmp_path / "environment" / "bin" / "python"
    uv = Path(sys.executable).with_name("uv")

    def pip(*arguments: str | Path) -> str:
        command = [uv, "pip", arguments[0], "--python", python, *arguments[1:]]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=600).stdout

    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, tmp_path / "environment"], check=True)
    constraints = tmp_path / "constraints.txt"  # those of the environment of the tests
    constraints.write_text("".join(f"{each.name}=={each.version}\n" for each in distributions()))
    pip("install", f"apache-airflow=={version('apache-airflow')}", "--constraint", constraints)
    before = pip("freeze").splitlines()
    pip("install", wheel)
    added = set(pip("freeze").splitlines()) ^ set(before)
    home = {"AIRFLOW_HOME": str(tmp_path / "home"), "PATH": "/usr/bin:/bin"}
    providers = subprocess.run(
        [python.with_name("airflow"), "providers", "list", "--output", "plain"],
        env=home, check=True, capture_output=True, text=True, timeout=120,
    ).stdout  # fmt: skip
    [sdist] = dist.glob("*.tar.gz")
    pip("install", "--reinstall-package", "airflow-provider-rayjobs", sdist)
    imported = "import airflow_provider_rayjobs.operators, airflow_provider_rayjobs.sensors"
    subprocess.run([python, "-c", imported], env=home, cwd=tmp_path, check=True, timeout=120)

    assert [line.partition(" @ ")[0] for line in added] == ["airflow-provider-rayjobs"]
    assert "airflow-provider-rayjobs" in providers
    assert len(before) > 100
    assert set(pip("freeze").splitlines()) - set(before) == {f"airflow-provider-rayjobs @ {sdist.as_uri()}"}


def test_pytest_finds_the_fixture_of_the_wheel(installed: dict[str, str], tmp_path: Path):
    """The fixture ``fake_ray`` of the installed wheel needs no import."""
    (tmp_path / "test_fixture.py").write_text("def test_fixture(fake_ray):\n    assert fake_ray.jobs == []\n")
    subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--rootdir", tmp_path, tmp_path],
        env=installed, cwd=tmp_path, check=True, timeout=120,
    )  # fmt: skip


def test_airflow_lists_the_connection_type_of_the_wheel(installed: dict[str, str], tmp_path: Path):
    """``airflow providers hooks`` lists ``ray_jobs``, from the installed wheel."""
    where = subprocess.run(
        [sys.executable, "-c", "import airflow_provider_rayjobs as it; print(it.__file__)"],
        env=installed, cwd=tmp_path, check=True, capture_output=True, text=True, timeout=60,
    ).stdout  # fmt: skip
    hooks = subprocess.run(
        [Path(sys.executable).with_name("airflow"), "providers", "hooks", "--output", "plain"],
        env=installed, cwd=tmp_path, check=True, capture_output=True, text=True, timeout=120,
    ).stdout  # fmt: skip

    assert where.startswith(installed["PYTHONPATH"])
    assert re.search(r"^ray_jobs +airflow_provider_rayjobs\.hooks\.RayJobsHook", hooks, re.MULTILINE)
