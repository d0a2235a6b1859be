"""What templates leave behind, as the types that Ray wants."""

from __future__ import annotations

import traceback
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from airflow_provider_rayjobs.task.template_values import (
    as_bool,
    as_entrypoint,
    as_exit_codes,
    as_fetch_logs,
    as_number,
    as_number_dict,
    as_optional_seconds,
    as_optional_text,
    as_package_secrets,
    as_positive_int,
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
    """A scalar becomes the text that a person would write."""
    assert as_text("field", value) == text


@pytest.mark.parametrize("value", [None, ["a"], {"a": 1}, b"a", object], ids=repr)
def test_no_text(value: Any) -> None:
    """What is no scalar is refused, by the field's name."""
    with pytest.raises(ValueError, match=r"^submission_id must be text, not "):
        as_text("submission_id", value)


@pytest.mark.parametrize(
    ("value", "number"),
    [
        pytest.param(None, None, id="not given"),
        pytest.param("", None, id="rendered to nothing"),
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
    """A number, or the text of one, becomes a number, whole where it can be."""
    result = as_number("field", value)

    assert result == number
    assert type(result) is type(number)


@pytest.mark.parametrize("value", ["many", True, [1], "2 GB", " "], ids=repr)
def test_no_number(value: Any) -> None:
    """What is no number is refused, by the field's name and with what was given."""
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
def test_flag(value: Any, flag: bool) -> None:
    """A yes or no in the usual words becomes True or False."""
    assert as_bool("field", value) is flag


@pytest.mark.parametrize("value", [None, "", "maybe", 2, []], ids=repr)
def test_no_flag(value: Any) -> None:
    """What is neither yes nor no is refused, by the field's name."""
    with pytest.raises(ValueError, match=r"^deferrable must be True or False, not "):
        as_bool("deferrable", value)


def test_texts() -> None:
    """Keys and values of a dictionary become text; no dictionary stays none."""
    assert as_text_dict("metadata", {"day": 20260101, 7: "a"}) == {"day": "20260101", "7": "a"}
    assert as_text_dict("metadata", {}) == {}
    assert as_text_dict("metadata", None) is None


def test_numbers() -> None:
    """Values of a dictionary become numbers; those that render to nothing are left out."""
    assert as_number_dict("entrypoint_resources", {"A100": "0.5", "slot": 1, "none": ""}) == {"A100": 0.5, "slot": 1}
    assert as_number_dict("entrypoint_resources", None) is None


@pytest.mark.parametrize(
    ("convert", "value", "message"),
    [
        pytest.param(as_text_dict, {"a": ["b"]}, r"field\['a'\] must be text, not list", id="list for a text"),
        pytest.param(as_text_dict, "a=b", "field must be a dictionary, not str", id="text for a dictionary"),
        pytest.param(as_number_dict, {"a": "b"}, r"field\['a'\] must be a number, not 'b'", id="word for a number"),
        pytest.param(as_number_dict, [1], "field must be a dictionary, not list", id="list for a dictionary"),
    ],
)
def test_wrong_dictionaries(convert: Any, value: Any, message: str) -> None:
    """A dictionary that is none, or has a wrong value, is refused by the name of the place."""
    with pytest.raises(ValueError, match=f"^{message}$"):
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
def test_no_entrypoint(value: Any, message: str) -> None:
    """What is no entrypoint is refused, by the place of the argument."""
    with pytest.raises(ValueError, match=f"^{message}"):
        as_entrypoint(value)


def test_runtime_env() -> None:
    """A runtime environment keeps its values, but env_vars become text."""
    given = {"pip": ["emoji"], "env_vars": {"PORT": 8080}}

    assert as_runtime_env(given, []) == {"pip": ["emoji"], "env_vars": {"PORT": "8080"}}
    assert given["env_vars"] == {"PORT": 8080}
    assert as_runtime_env({"env_vars": None}, []) == {"env_vars": None}
    assert as_runtime_env(None, []) is None
    assert as_runtime_env("", []) is None


def test_runtime_env_of_a_file(tmp_path: Path) -> None:
    """A runtime environment may be a YAML file: at its absolute path, or in the first folder that has it."""
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
        pytest.param(b"a: [", "bad.yaml is not readable as YAML", id="half a list"),
        pytest.param(b"\xff\xfe\xff", "bad.yaml is not readable as YAML", id="binary"),
        pytest.param(b"- a", "^runtime_env must be a dictionary", id="a list"),
        pytest.param(b"env_vars: a", r"^runtime_env\['env_vars'\] must be a dictionary", id="env_vars are none"),
        pytest.param(None, "^runtime_env: no such file: bad.yaml; looked for /", id="no file"),
    ],
)
def test_wrong_files(tmp_path: Path, content: bytes | None, message: str) -> None:
    """A file that is missing or holds something else is refused, with its path and the field's name."""
    if content is not None:
        (tmp_path / "bad.yaml").write_bytes(content)

    with pytest.raises(ValueError, match=message) as caught:
        as_runtime_env("bad.yaml", [tmp_path])
    assert str(caught.value).startswith("runtime_env")


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (b"env_vars:\n  A: m4rked\n B: c", "line 3, column 2"),
        (b"env_vars: {A: 'm4rked", "line 1, column 22"),
        (b"A: *m4rked", "line 1, column 4"),
        (b"m4rked\xff", "byte 6 is no UTF-8"),
    ],
)
def test_a_wrong_files_content_is_not_shown(tmp_path: Path, content: bytes, place: str) -> None:
    """A mistake in a YAML file is said with its place, and without what stands there: it may be a secret."""
    (tmp_path / "bad.yaml").write_bytes(content)

    with pytest.raises(ValueError, match=place) as caught:
        as_runtime_env("bad.yaml", [tmp_path])
    assert "m4rked" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("text", ["env_vars: {A: m4rked}", "pip: m4rked", "pip:\n- m4rked", " {'pip': 'm4rked'}"])
def test_text_in_place_of_a_path_is_not_shown(tmp_path: Path, text: str) -> None:
    """What is no path is refused for what it is."""
    with pytest.raises(ValueError, match=r"^runtime_env is the text of") as caught:
        as_runtime_env(text, [tmp_path])
    assert "m4rked" not in str(caught.value)


def test_rendered_dictionary_is_no_file(tmp_path: Path) -> None:
    """A dictionary that a template made into text is refused for what it is, and not shown: it may hold secrets."""
    template_values = str({"pip": [f"package-{number}" for number in range(100)]})

    with pytest.raises(ValueError, match="^runtime_env is the text of a dictionary") as caught:
        as_runtime_env(template_values, [tmp_path])
    with pytest.raises(ValueError, match="^runtime_env: no such file"):
        as_runtime_env("x" * 5000, [tmp_path])
    assert "package-1" not in str(caught.value)


def test_a_yaml_file_of_a_user_that_there_is_not(tmp_path: Path):
    """``~`` before the name of no user is part of a name, not an error of its own."""
    with pytest.raises(ValueError, match=r"^runtime_env: no such file: ~nosuchuser/env\.yaml"):
        as_runtime_env("~nosuchuser/env.yaml", [tmp_path])


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        pytest.param(5, 5, id="number"),
        pytest.param("0.5", 0.5, id="text"),
        pytest.param(timedelta(minutes=2), 120, id="timedelta"),
        pytest.param(0, 0, id="none at all"),
    ],
)
def test_durations(value: Any, seconds: float) -> None:
    """A duration may be given in seconds, as text, or as a timedelta."""
    assert as_seconds("poll_interval", value) == seconds


@pytest.mark.parametrize("value", [-1, "-0.5", "soon", None, "", timedelta(seconds=-1), "nan", "inf"])
def test_no_durations(value: Any) -> None:
    """What is no duration is refused, by the field's name."""
    with pytest.raises(ValueError, match="poll_interval must be a number"):
        as_seconds("poll_interval", value)


@pytest.mark.parametrize("value", ["live", "on_completion", "never"])
def test_ways_to_fetch_logs(value: str) -> None:
    """There are three ways to fetch logs."""
    assert as_fetch_logs(value) == value


@pytest.mark.parametrize("value", ["Live", "", None, True])
def test_no_ways_to_fetch_logs(value: Any) -> None:
    """Anything else is refused with the three."""
    with pytest.raises(ValueError, match="fetch_logs must be one of live, on_completion, never"):
        as_fetch_logs(value)


@pytest.mark.parametrize("value", [None, "", "None"])
def test_texts_that_templates_left_empty(value: Any) -> None:
    """An XCom that nobody pushed renders to nothing, or to the word None: neither is an id."""
    assert as_optional_text("submission_id", value) is None


def test_optional_texts() -> None:
    """Anything else is the text that it is."""
    assert as_optional_text("submission_id", 20260102) == "20260102"


@pytest.mark.parametrize("value", [None, "", "None"])
def test_no_limits(value: Any) -> None:
    """A duration that is not given, or that a template left empty, is no limit."""
    assert as_optional_seconds("job_timeout", value) is None


@pytest.mark.parametrize(
    ("value", "seconds"), [(5, 5), ("0.5", 0.5), (timedelta(minutes=2), 120), (0, 0), (timedelta(0), 0)], ids=str
)
def test_limits(value: Any, seconds: float) -> None:
    """A limit is a duration like any other; 0 is one, too."""
    assert as_optional_seconds("job_timeout", value) == seconds


@pytest.mark.parametrize("value", [-1, "soon", timedelta(seconds=-1), "nan", "inf", True], ids=repr)
def test_wrong_limits(value: Any) -> None:
    """What is no duration is refused by the field's name, and never taken for no limit."""
    with pytest.raises(ValueError, match="^job_timeout must be a number"):
        as_optional_seconds("job_timeout", value)


@pytest.mark.parametrize(
    ("value", "codes"),
    [
        pytest.param(None, set(), id="not given"),
        pytest.param("", set(), id="nothing rendered"),
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
    """Exit codes are given as one or many, as numbers or as what a template made of them."""
    assert as_exit_codes("fail_on_exit_code", value) == frozenset(codes)


@pytest.mark.parametrize(
    "value",
    ["some", "1, 2", 1.5, "1.5", True, [None], [1, "x"], [[1]], [""], "inf", "nan", float("inf"), [float("nan")]],
    ids=repr,
)
def test_wrong_exit_codes(value: Any) -> None:
    """What is no exit code is refused, by the field's name."""
    with pytest.raises(ValueError, match="^fail_on_exit_code must be"):
        as_exit_codes("fail_on_exit_code", value)


@pytest.mark.parametrize(("value", "count"), [(None, None), ("", None), ("None", None), (7, 7), ("7", 7), (7.0, 7)])
def test_counts(value: Any, count: int | None):
    """A count is a whole number above 0, as text as well; nothing means that there is no limit."""
    assert as_positive_int("log_lines_limit", value) == count


@pytest.mark.parametrize("value", [0, -1, 1.5, "many", True, [1]])
def test_wrong_counts(value: Any):
    """What is no count is an error that names the field."""
    with pytest.raises(ValueError, match="log_lines_limit"):
        as_positive_int("log_lines_limit", value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(True, True), ("True", True), (False, False), (None, False), ("", False), (["*.pem"], ["*.pem"]), ((), [])],
)
def test_package_secrets(value: Any, expected: Any):
    """All, none, or those that patterns name; text from a template does as well."""
    assert as_package_secrets(value) == expected


@pytest.mark.parametrize("value", ["*.pem", 3, [None]])
def test_package_secrets_that_are_neither(value: Any):
    """What is neither a yes or no nor a list of patterns is an error that names the field."""
    with pytest.raises(ValueError, match="package_secrets"):
        as_package_secrets(value)
