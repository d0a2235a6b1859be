"""Conversion of rendered templates to the types that Ray expects."""

from __future__ import annotations

import errno
import os
import traceback
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from airflow_provider_rayjobs.exceptions import RayPackageError
from airflow_provider_rayjobs.jobs.logs.options import LogOptions
from airflow_provider_rayjobs.task.template_values import (
    as_bool,
    as_bytes,
    as_entrypoint,
    as_exit_codes,
    as_log_options,
    as_number,
    as_number_dict,
    as_optional_seconds,
    as_optional_text,
    as_package_secrets,
    as_runtime_env,
    as_seconds,
    as_text,
    as_text_dict,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        pytest.param("a b", "a b", id="text"),
        pytest.param("", "", id="empty"),
        pytest.param(20260101, "20260101", id="a date without dashes"),
        pytest.param(0.5, "0.5", id="number"),
        pytest.param(Decimal("1.10"), "1.10", id="decimal"),
        pytest.param(True, "True", id="flag"),
        pytest.param(date(2026, 1, 2), "2026-01-02", id="date"),
        pytest.param(UUID(int=1), "00000000-0000-0000-0000-000000000001", id="uuid"),
        pytest.param(Path("/data/in"), "/data/in", id="path"),
    ],
)
def test_text(value: Any, text: str) -> None:
    """A scalar becomes the text that a user would write."""
    assert as_text("field", value) == text


@pytest.mark.parametrize("value", [None, ["a"], {"a": 1}, b"a", object], ids=repr)
def test_wrong_text(value: Any) -> None:
    """A value that is not a scalar is an error that names the field."""
    with pytest.raises(ValueError, match=r"^submission_id must be text, not "):
        as_text("submission_id", value)


@pytest.mark.parametrize(
    ("value", "number"),
    [
        pytest.param(None, None, id="not given"),
        pytest.param("", None, id="empty"),
        pytest.param("None", None, id="rendered to None"),
        pytest.param(2, 2, id="whole"),
        pytest.param(0.25, 0.25, id="fraction"),
        pytest.param("2", 2, id="text"),
        pytest.param(" 0.5 ", 0.5, id="text of a fraction"),
        pytest.param("1e9", 1_000_000_000, id="text with an exponent"),
        pytest.param(Decimal("1.5"), 1.5, id="decimal"),
    ],
)
def test_number(value: Any, number: float | None) -> None:
    """A number or its text becomes a number, an integer if possible."""
    result = as_number("field", value)

    assert result == number
    assert type(result) is type(number)


@pytest.mark.parametrize("value", ["many", True, [1], "2 GB", " "], ids=repr)
def test_wrong_number(value: Any) -> None:
    """A value that is not a number is an error that names the field and the value."""
    with pytest.raises(ValueError, match=r"^entrypoint_num_cpus must be a number, not ") as caught:
        as_number("entrypoint_num_cpus", value)

    assert repr(value) in str(caught.value)


@pytest.mark.parametrize(
    ("value", "flag"),
    [
        (True, True),
        ("True", True),
        (" yes ", True),
        (1, True),
        (False, False),
        ("false", False),
        ("No", False),
        (0, False),
    ],
    ids=repr,
)
def test_bool(value: Any, flag: bool) -> None:
    """The usual words for yes and no become True and False."""
    assert as_bool("field", value) is flag


@pytest.mark.parametrize("value", [None, "", "maybe", 2, []], ids=repr)
def test_wrong_bool(value: Any) -> None:
    """A value that is neither yes nor no is an error that names the field."""
    with pytest.raises(ValueError, match=r"^deferrable must be True or False, not "):
        as_bool("deferrable", value)


def test_text_dict() -> None:
    """Keys and values of a dictionary become text; None stays None."""
    assert as_text_dict("metadata", {"day": 20260101, 7: "a"}) == {"day": "20260101", "7": "a"}
    assert as_text_dict("metadata", {}) == {}
    assert as_text_dict("metadata", None) is None


def test_number_dict() -> None:
    """Values of a dictionary become numbers; unset ones are left out."""
    assert as_number_dict("entrypoint_resources", {"A100": "0.5", "slot": 1, "none": ""}) == {"A100": 0.5, "slot": 1}
    assert as_number_dict("entrypoint_resources", None) is None


@pytest.mark.parametrize(
    ("convert", "value", "message"),
    [
        pytest.param(as_text_dict, {"a": ["b"]}, r"field\['a'\] must be text, not list", id="list instead of text"),
        pytest.param(as_text_dict, "a=b", "field must be a dictionary, not str", id="text instead of a dictionary"),
        pytest.param(
            as_number_dict, {"a": "b"}, r"field\['a'\] must be a number, not 'b'", id="word instead of a number"
        ),
        pytest.param(as_number_dict, [1], "field must be a dictionary, not list", id="list instead of a dictionary"),
    ],
)
def test_wrong_dict(convert: Any, value: Any, message: str) -> None:
    """A wrong dictionary, or a wrong value in one, is an error that names the field and the key."""
    with pytest.raises(ValueError, match=rf"^{message}\.$"):
        convert("field", value)


def test_entrypoint() -> None:
    """An entrypoint is a command, or a list of arguments that become text."""
    assert as_entrypoint("python main.py") == "python main.py"
    assert as_entrypoint(["echo", 20260101, Path("/a")]) == ["echo", "20260101", "/a"]
    assert as_entrypoint(("echo",)) == ["echo"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        pytest.param(None, "entrypoint must be text", id="None"),
        pytest.param(b"echo", "entrypoint must be text", id="bytes"),
        pytest.param(["echo", ["a"]], r"entrypoint\[1\] must be text", id="list in the list"),
    ],
)
def test_wrong_entrypoint(value: Any, message: str) -> None:
    """A wrong entrypoint is an error that names the argument."""
    with pytest.raises(ValueError, match=f"^{message}"):
        as_entrypoint(value)


def test_runtime_env() -> None:
    """A runtime environment keeps its values; only env_vars become text."""
    given = {"pip": ["emoji"], "env_vars": {"PORT": 8080}}

    assert as_runtime_env(given, []) == {"pip": ["emoji"], "env_vars": {"PORT": "8080"}}
    assert given["env_vars"] == {"PORT": 8080}
    assert as_runtime_env({"env_vars": None}, []) == {"env_vars": None}
    assert as_runtime_env(None, []) is None
    assert as_runtime_env("", []) is None


def test_runtime_env_file(tmp_path: Path) -> None:
    """A runtime environment may be a YAML file: an absolute path, or a path in the first folder that has it."""
    for folder, text in (("one", None), ("two", "env_vars: {PORT: 8080}"), ("three", "pip: [a]"), ("empty", "")):
        (tmp_path / folder).mkdir()
        if text is not None:
            (tmp_path / folder / "env.yaml").write_text(text)
    folders = [tmp_path / name for name in ("one", "two", "three")]

    assert as_runtime_env("env.yaml", folders) == {"env_vars": {"PORT": "8080"}}
    assert as_runtime_env(tmp_path / "three" / "env.yaml", folders) == {"pip": ["a"]}
    assert as_runtime_env(str(tmp_path / "empty" / "env.yaml"), []) == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"a: [", "bad.yaml is not valid YAML", id="half a list"),
        pytest.param(b"\xff\xfe\xff", "bad.yaml is not valid YAML", id="binary"),
        pytest.param(b"- a", "^runtime_env must be a dictionary", id="a list"),
        pytest.param(b"env_vars: a", r"^runtime_env\['env_vars'\] must be a dictionary", id="wrong env_vars"),
        pytest.param(None, "^runtime_env: file not found: bad.yaml. Searched: /", id="no file"),
    ],
)
def test_wrong_runtime_env_file(tmp_path: Path, content: bytes | None, message: str) -> None:
    """A missing or wrong file is an error with its path and the name of the field."""
    if content is not None:
        (tmp_path / "bad.yaml").write_bytes(content)

    with pytest.raises(ValueError, match=message) as caught:
        as_runtime_env("bad.yaml", [tmp_path])
    assert str(caught.value).startswith("runtime_env")


@pytest.mark.parametrize(
    ("content", "position"),
    [
        (b"env_vars:\n  A: m4rked\n B: c", "line 3, column 2"),
        (b"env_vars: {A: 'm4rked", "line 1, column 22"),
        (b"A: *m4rked", "line 1, column 4"),
        (b"m4rked\xff", "byte 6 is not UTF-8"),
    ],
)
def test_error_of_a_wrong_file_shows_no_content(tmp_path: Path, content: bytes, position: str) -> None:
    """The error about a YAML file has the position, but no content, which may be a secret."""
    (tmp_path / "bad.yaml").write_bytes(content)

    with pytest.raises(ValueError, match=position) as caught:
        as_runtime_env("bad.yaml", [tmp_path])
    assert "m4rked" not in "".join(traceback.format_exception(caught.value))
    assert caught.value.__context__ is None


@pytest.mark.parametrize("text", ["env_vars: {A: m4rked}", "pip: m4rked", "pip:\n- m4rked", " {'pip': 'm4rked'}"])
def test_error_of_text_shows_no_content(tmp_path: Path, text: str) -> None:
    """The text of a runtime environment in place of a path is an error that does not quote it."""
    with pytest.raises(ValueError, match=r"^runtime_env is the text of a dictionary") as caught:
        as_runtime_env(text, [tmp_path])
    assert "m4rked" not in str(caught.value)


def test_rendered_dictionary(tmp_path: Path) -> None:
    """A dictionary that was rendered to text is an error that does not quote it, because it may contain secrets."""
    rendered = str({"pip": [f"package-{number}" for number in range(100)]})

    with pytest.raises(ValueError, match="^runtime_env is the text of a dictionary") as caught:
        as_runtime_env(rendered, [tmp_path])
    with pytest.raises(ValueError, match="^runtime_env: file not found"):
        as_runtime_env("x" * 5000, [tmp_path])
    assert "package-1" not in str(caught.value)


def test_runtime_env_file_that_cannot_be_found(tmp_path: Path):
    """A path that the system cannot follow is no missing file: on a shared disk, the next try may find it."""
    (tmp_path / "env.yaml").symlink_to("env.yaml")

    with pytest.raises(RayPackageError, match=r"Could not read '.*/env\.yaml': Too many levels of symbolic links"):
        as_runtime_env("env.yaml", [tmp_path])


def test_runtime_env_file_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A fault of the disk while the file is read is an error of local code, with its path."""

    def fail(*_: Any, **__: Any) -> str:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    (tmp_path / "env.yaml").write_text("pip: [a]")
    monkeypatch.setattr(Path, "read_text", fail)

    with pytest.raises(RayPackageError, match=r"Could not read '.*/env\.yaml': Stale file handle"):
        as_runtime_env("env.yaml", [tmp_path])


def test_runtime_env_file_of_an_unknown_user(tmp_path: Path):
    """``~`` before an unknown user is part of the file name."""
    with pytest.raises(ValueError, match=r"^runtime_env: file not found: ~nosuchuser/env\.yaml"):
        as_runtime_env("~nosuchuser/env.yaml", [tmp_path])


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        pytest.param(5, 5, id="number"),
        pytest.param("0.5", 0.5, id="text"),
        pytest.param(timedelta(minutes=2), 120, id="timedelta"),
        pytest.param(0, 0, id="zero"),
    ],
)
def test_seconds(value: Any, seconds: float) -> None:
    """A duration is a number of seconds, its text, or a timedelta."""
    assert as_seconds("poll_interval", value) == seconds


@pytest.mark.parametrize("value", [-1, "-0.5", "2h", [1], None, "", timedelta(seconds=-1), "nan", "inf"])
def test_wrong_seconds(value: Any) -> None:
    """A value that is not a duration is an error that names the field and the accepted forms."""
    with pytest.raises(
        ValueError, match=r"poll_interval must be a number of seconds.* 7200, or .*timedelta\(hours=2\)"
    ):
        as_seconds("poll_interval", value)


@pytest.mark.parametrize("fetch_logs", ["live", "on_completion", "never"])
def test_log_options(fetch_logs: str) -> None:
    """fetch_logs has three values; limit and interval may be numbers or text."""
    assert as_log_options(fetch_logs, "7", "0.5") == LogOptions(fetch_logs, lines_limit=7, flush_interval=0.5)
    assert as_log_options(fetch_logs, None, None) == LogOptions(fetch_logs)


@pytest.mark.parametrize("value", ["Live", "", None, True])
def test_wrong_fetch_logs(value: Any) -> None:
    """Any other value of fetch_logs is an error that lists the three."""
    with pytest.raises(ValueError, match="fetch_logs must be one of live, on_completion, never"):
        as_log_options(value, None, None)


@pytest.mark.parametrize("value", [None, "", "None"])
def test_unset_text(value: Any) -> None:
    """A missing XCom renders to an empty text or to None: both are unset."""
    assert as_optional_text("submission_id", value) is None


def test_optional_text() -> None:
    """Every other scalar becomes text."""
    assert as_optional_text("submission_id", 20260102) == "20260102"


@pytest.mark.parametrize("value", [None, "", "None"])
def test_unset_seconds(value: Any) -> None:
    """A duration that is unset is no limit."""
    assert as_optional_seconds("job_timeout", value) is None


@pytest.mark.parametrize(
    ("value", "seconds"), [(5, 5), ("0.5", 0.5), (timedelta(minutes=2), 120), (0, 0), (timedelta(0), 0)], ids=str
)
def test_optional_seconds(value: Any, seconds: float) -> None:
    """A limit is a duration like any other, 0 included."""
    assert as_optional_seconds("job_timeout", value) == seconds


@pytest.mark.parametrize("value", [-1, "soon", timedelta(seconds=-1), "nan", "inf", True], ids=repr)
def test_wrong_optional_seconds(value: Any) -> None:
    """A value that is not a duration is an error, instead of no limit."""
    with pytest.raises(ValueError, match="^job_timeout must be a number"):
        as_optional_seconds("job_timeout", value)


@pytest.mark.parametrize(
    ("value", "codes"),
    [
        pytest.param(None, set(), id="not given"),
        pytest.param("", set(), id="empty"),
        pytest.param("None", set(), id="None rendered"),
        pytest.param([], set(), id="an empty list"),
        pytest.param(99, {99}, id="one"),
        pytest.param(0, {0}, id="success is a code, too"),
        pytest.param(-9, {-9}, id="a signal"),
        pytest.param("99", {99}, id="text"),
        pytest.param(99.0, {99}, id="whole"),
        pytest.param([1, "2", 3.0, 1], {1, 2, 3}, id="list"),
        pytest.param((1, 2), {1, 2}, id="tuple"),
        pytest.param({1, 2}, {1, 2}, id="set"),
        pytest.param(range(3), {0, 1, 2}, id="range"),
    ],
)
def test_exit_codes(value: Any, codes: set[int]) -> None:
    """Exit codes are one or many, as numbers or text."""
    assert as_exit_codes("fail_on_exit_code", value) == frozenset(codes)


@pytest.mark.parametrize(
    "value",
    ["some", "1, 2", 1.5, "1.5", True, [None], [1, "x"], [[1]], [""], "inf", "nan", float("inf"), [float("nan")]],
    ids=repr,
)
def test_wrong_exit_codes(value: Any) -> None:
    """A value that is not an exit code is an error that names the field."""
    with pytest.raises(ValueError, match="^fail_on_exit_code must be"):
        as_exit_codes("fail_on_exit_code", value)


@pytest.mark.parametrize(("value", "count"), [(None, None), ("", None), ("None", None), (7, 7), ("7", 7), (7.0, 7)])
def test_log_lines_limit(value: Any, count: int | None):
    """The limit is a whole number above 0, also as text; unset means no limit."""
    assert as_log_options("live", value, None).lines_limit == count


@pytest.mark.parametrize("value", [0, -1, 1.5, "many", True, [1]])
def test_wrong_log_lines_limit(value: Any):
    """A value that is not a whole number above 0 is an error that names the field."""
    with pytest.raises(ValueError, match="log_lines_limit"):
        as_log_options("live", value, None)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(True, True), ("True", True), (False, False), (None, False), ("", False), (["*.pem"], ["*.pem"]), ((), [])],
)
def test_package_secrets(value: Any, expected: Any):
    """package_secrets is a flag, its text, or a list of patterns."""
    assert as_package_secrets(value) == expected


@pytest.mark.parametrize("value", ["*.pem", 3, [None]])
def test_wrong_package_secrets(value: Any):
    """A value that is neither a flag nor a list of patterns is an error that names the field."""
    with pytest.raises(ValueError, match="package_secrets"):
        as_package_secrets(value)


@pytest.mark.parametrize(
    ("value", "size"),
    [
        (None, None),
        ("", None),
        (2**31, 2**31),
        ("2147483648", 2**31),
        ("2GB", 2_000_000_000),
        ("2G", 2_000_000_000),
        ("4.1gb", 4_100_000_000),
        (" 512 MiB ", 2**29),
        ("1.5Gi", 3 * 2**29),
        ("64KiB", 2**16),
        ("1TB", 10**12),
        ("512k", 512_000),
        ("512mb", 512_000_000),
        ("512mi", 2**29),
    ],
)
def test_bytes(value: Any, size: int | None) -> None:
    """A number of bytes may be text with a unit: powers of 1000, or of 1024 with an i."""
    assert as_bytes("entrypoint_memory", value) == size
    assert type(as_bytes("entrypoint_memory", value)) is type(size)


@pytest.mark.parametrize("value", ["2 giga", "-2GB", "GB", "2GB 3GB", "2bytes", "1,5GB", "512m", [2], True], ids=repr)
def test_wrong_bytes(value: Any) -> None:
    """A value that is no number of bytes is an error that names the field and the units."""
    with pytest.raises(ValueError, match="^entrypoint_memory must be a number of bytes, or text such as 2GB or 1.5GiB"):
        as_bytes("entrypoint_memory", value)
