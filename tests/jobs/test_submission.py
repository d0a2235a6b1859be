"""The content of a submission, and what is refused before anything is sent."""

from __future__ import annotations

import json
import shlex
import subprocess
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_rayjobs.jobs.submission import NONCE, RUNTIME_ENV_KEYS, build_submission, new_nonce

ARGUMENT = 128 * 1024 - 1
arguments = st.lists(
    st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=20), min_size=1, max_size=5
)


def test_submission_holds_every_option() -> None:
    """A submission holds every option, under Ray's names and with Ray's types."""
    submission = build_submission(
        ["python", "main.py", "--day", "2026 01"],
        submission_id="nightly-1",
        runtime_env={"pip": ["emoji"], "env_vars": {"A": "b"}},
        metadata={"job_name": "nightly"},
        entrypoint_num_cpus=0.5,
        entrypoint_num_gpus=0,
        entrypoint_memory=1e9,
        entrypoint_resources={"A100": 1},
        entrypoint_label_selector={"zone": "a"},
    )

    body = submission.to_json()
    nonce = body["metadata"].pop(NONCE)
    assert body == {
        "submission_id": "nightly-1",
        "entrypoint": "python main.py --day '2026 01'",
        "runtime_env": {"pip": ["emoji"], "env_vars": {"A": "b"}},
        "metadata": {"job_name": "nightly"},
        "entrypoint_num_cpus": 0.5,
        "entrypoint_num_gpus": 0,
        "entrypoint_memory": 1_000_000_000,
        "entrypoint_resources": {"A100": 1},
        "entrypoint_label_selector": {"zone": "a"},
    }
    assert len(nonce) == 16
    assert type(body["entrypoint_memory"]) is int


def test_submission_of_a_command_alone() -> None:
    """A command is kept as it is, and a submission without options gets its own id and nonce."""
    one, other = (
        build_submission("echo $HOME | cat"),
        build_submission("echo $HOME | cat", submission_id=None, metadata=None),
    )

    assert one.entrypoint == "echo $HOME | cat"
    assert one.to_json().keys() == {"submission_id", "entrypoint", "metadata"}
    assert one.submission_id != other.submission_id
    assert one.metadata[NONCE] != other.metadata[NONCE]


def test_nonce_in_metadata_is_refused() -> None:
    """A nonce copied from another job's metadata is refused: that job would pass for this submission's."""
    with pytest.raises(ValueError, match="metadata must not contain submission_nonce"):
        build_submission("true", metadata={NONCE: "copied"})


def test_unknown_option_is_refused() -> None:
    """An unknown option is refused by name, as in any function call."""
    with pytest.raises(
        TypeError, match="Unknown options: colour, shape. A submission has the options submission_id, runtime_env, "
    ):
        build_submission("true", shape=1, colour="red")


@given(arguments)
def test_arguments_survive_a_shell(given_arguments: list[str]) -> None:
    """Arguments given as a list are read by a shell as exactly those arguments."""
    assert shlex.split(build_submission(given_arguments).entrypoint) == given_arguments


@settings(max_examples=25, deadline=None)
@given(arguments)
def test_arguments_cannot_inject_commands(given_arguments: list[str]) -> None:
    """No argument given as a list can add a command or another argument."""
    command = build_submission(["printf", "%s\\0", *given_arguments]).entrypoint

    shown = subprocess.run(["/bin/sh", "-c", command], capture_output=True, check=True).stdout
    assert shown == b"".join(argument.encode() + b"\0" for argument in given_arguments)


@pytest.mark.parametrize(
    "submission_id",
    ["a", "x" * 200, "Nightly_2026-01-01.1", "rayjob-0", "0123456", "012345678", "ABCDEF01", "...", ".a"],
    ids=lambda value: value[:20],
)
def test_valid_submission_ids(submission_id: str) -> None:
    """Ids of up to 200 letters, digits, dots, dashes and underscores are accepted."""
    assert build_submission("true", submission_id=submission_id).submission_id == submission_id


WRONG: list[Any] = [
    pytest.param("", {}, "entrypoint is empty", id="no command"),
    pytest.param(" \n", {}, "entrypoint is empty", id="blank command"),
    pytest.param([], {}, "entrypoint is empty", id="no arguments"),
    pytest.param(["echo", 1], {}, "entrypoint must be a command, or a list", id="number as argument"),
    pytest.param(None, {}, "entrypoint must be a command, or a list", id="None as command"),
    pytest.param(b"echo", {}, "entrypoint must be a command, or a list", id="bytes as command"),
    pytest.param({"echo"}, {}, "entrypoint must be a command, or a list", id="set as command"),
    pytest.param("echo a\0b", {}, "entrypoint contains a NUL", id="NUL in the command"),
    pytest.param("echo \udc80", {}, "entrypoint", id="lone surrogate in the command"),
    *(
        pytest.param("true", {"submission_id": value}, "submission_id", id=f"id {str(value)[:9]!r}")
        for value in ("a/b", "a b", "ü", "a\n", "x" * 201, "01000000", "deadbeef", 7, ".", "..")
    ),
    pytest.param(
        "true", {"metadata": {"a": 1}}, "metadata must map text to text: the value of 'a' is int", id="metadata"
    ),
    pytest.param("true", {"metadata": {1: "a"}}, "metadata must map text to text: the key 1 is int", id="metadata key"),
    pytest.param("true", {"metadata": ["a"]}, "metadata must be a dictionary", id="metadata list"),
    pytest.param("true", {"metadata": {"job_submission_id": "a"}}, "metadata must not contain job_sub", id="misfiling"),
    pytest.param("true", {"metadata": {"a": "\udc80"}}, "metadata", id="lone surrogate in the metadata"),
    pytest.param("true", {"entrypoint_resources": {"\udc80": 1}}, "entrypoint_resources", id="lone surrogate: name"),
    *(
        pytest.param("true", {field: value}, f"{field} must be a number, 0 or more, not", id=f"{field} {value!r}")
        for field in ("entrypoint_num_cpus", "entrypoint_num_gpus", "entrypoint_memory")
        for value in (float("nan"), float("inf"), -1, -0.5, True, "2", [1])
    ),
    pytest.param("true", {"entrypoint_memory": 0.5}, "entrypoint_memory must be a whole number", id="half a byte"),
    *(
        pytest.param(
            "true",
            {"entrypoint_resources": {"a": value}},
            r"entrypoint_resources\['a'\] must be",
            id=f"resource {value}",
        )
        for value in (None, True, "1", -1, float("nan"), float("inf"))
    ),
    pytest.param("true", {"entrypoint_resources": ["a"]}, "entrypoint_resources must be a dictionary", id="resources"),
    pytest.param("true", {"entrypoint_label_selector": {"a": 1}}, "entrypoint_label_selector must map", id="label"),
    pytest.param("true", {"entrypoint_label_selector": "a"}, "entrypoint_label_selector must be", id="labels"),
]


@pytest.mark.parametrize(("entrypoint", "options", "message"), WRONG)
def test_wrong_option_is_refused_by_name(entrypoint: Any, options: dict[str, Any], message: str) -> None:
    """An option that cannot work is refused before anything is sent, and the error names the field."""
    with pytest.raises(ValueError, match=f"^{message}"):
        build_submission(entrypoint, **options)


@pytest.mark.parametrize(
    ("runtime_env", "message"),
    [
        pytest.param({"pips": ["a"]}, "'pips' .did you mean 'pip'", id="misspelt pip"),
        pytest.param({"workdir": "s3://a"}, "'workdir' .did you mean 'working_dir'", id="misspelt working_dir"),
        pytest.param({"env_var": {}}, "'env_var' .did you mean 'env_vars'", id="misspelt env_vars"),
        pytest.param({"zzz": 1}, "'zzz' .Ray knows _inject_current_ray, ", id="nothing like it"),
        pytest.param({7: 1}, "7 .Ray knows ", id="number as key"),
        pytest.param("env.yaml", "must be a dictionary, not str", id="a path"),
        pytest.param(
            {"env_vars": {"A": 1}}, r"\['env_vars'\] must map text to text: the value of 'A' is int", id="env_vars"
        ),
        pytest.param({"env_vars": ["A=1"]}, r"\['env_vars'\] must be a dictionary", id="env_vars list"),
        pytest.param({"working_dir": "."}, r"\['working_dir'\] is '.', but must be a URI", id="working_dir"),
        pytest.param({"working_dir": "/home/me/code.zip"}, r"\['working_dir'\]", id="working_dir archive"),
        pytest.param({"working_dir": {"a": 1}}, r"\['working_dir'\]", id="working_dir dictionary"),
        pytest.param({"py_modules": ["s3://a/b.zip", "./lib"]}, r"\['py_modules'\]\[1\] is './lib'", id="py_modules"),
        pytest.param({"py_modules": "s3://a/b.zip"}, r"\['py_modules'\] must be a list", id="one py_module"),
        pytest.param({"py_modules": {"a": 1}}, r"\['py_modules'\] must be a list", id="py_modules dictionary"),
        pytest.param({"pip": ["a", "-r more.txt"]}, r"\['pip'\] names the file '-r more.txt'", id="pip -r"),
        pytest.param({"conda": "/opt/env"}, r"\['conda'\] is the path", id="conda folder"),
        pytest.param({"java_jars": ["./a.jar"]}, r"\['java_jars'\]\[0\] is './a.jar'", id="java_jars"),
        pytest.param({"pip": "requirements.txt"}, r"\['pip'\] names the file", id="pip"),
        pytest.param({"uv": "requirements.txt"}, r"\['uv'\] names the file", id="uv"),
        pytest.param({"pip": {"packages": "requirements.txt"}}, r"\['pip'\]", id="pip packages"),
        pytest.param({"uv": {"packages": "requirements.txt"}}, r"\['uv'\]", id="uv packages"),
        pytest.param({"conda": "env.yml"}, r"\['conda'\] is the path", id="conda yml"),
        pytest.param({"conda": "./env.yaml"}, r"\['conda'\] is the path", id="conda yaml"),
        pytest.param({"config": {1, 2}}, "cannot be sent as JSON", id="a set"),
        pytest.param({"config": {"setup_timeout_seconds": float("nan")}}, "cannot be sent as JSON", id="not a number"),
    ],
)
def test_wrong_runtime_env_is_refused(runtime_env: Any, message: str) -> None:
    """A runtime environment is refused if Ray would ignore a part of it or cannot find a path."""
    with pytest.raises(ValueError, match=rf"^runtime_env.*{message}"):
        build_submission("true", runtime_env=runtime_env)


@pytest.mark.parametrize(
    "runtime_env",
    [
        pytest.param({"working_dir": "gcs://_ray_pkg_0123.zip"}, id="package on the cluster"),
        pytest.param({"working_dir": "s3://a/b.zip", "py_modules": ["file:///shared/lib.whl"]}, id="other URIs"),
        pytest.param({"pip": ["a"], "env_vars": {"A": "b"}, "excludes": ["*.csv"]}, id="lists"),
        pytest.param({"pip": {"packages": ["a"], "pip_check": False}}, id="pip dictionary"),
        pytest.param({"conda": "pytorch"}, id="conda by name"),
        pytest.param({"conda": {"dependencies": ["a"]}}, id="conda dictionary"),
        pytest.param({"image_uri": "rayproject/ray:2.60.0"}, id="image"),
        pytest.param(dict.fromkeys(sorted(RUNTIME_ENV_KEYS)), id="every key, unset"),
    ],
)
def test_valid_runtime_env_is_sent_unchanged(runtime_env: dict[str, Any]) -> None:
    """A runtime environment that the cluster can read is sent unchanged."""
    assert build_submission("true", runtime_env=runtime_env).runtime_env == runtime_env


def test_empty_options_count_as_missing() -> None:
    """An empty runtime environment, empty metadata and an empty id count as missing."""
    submission = build_submission("true", runtime_env={}, metadata={}, submission_id="")

    assert submission.runtime_env is None
    assert submission.metadata.keys() == {NONCE}
    assert submission.submission_id.startswith("rayjob-")


def sized(runtime_env_and_metadata: int) -> dict[str, Any]:
    """Return options whose runtime environment and metadata have this many bytes together."""
    options: dict[str, Any] = {"runtime_env": {"env_vars": {"A": ""}}}
    rest = len(json.dumps(options | {"metadata": {NONCE: "n" * 16}}))
    options["runtime_env"]["env_vars"]["A"] = "x" * (runtime_env_and_metadata - rest)
    return options


def labelled(body: int) -> dict[str, Any]:
    """Return options whose request body has this many bytes."""
    options: dict[str, Any] = {"submission_id": "a", "entrypoint_label_selector": {"a": ""}}
    rest = len(json.dumps({"entrypoint": "true", "metadata": {NONCE: "n" * 16}} | options))
    options["entrypoint_label_selector"]["a"] = "x" * (body - rest)
    return options


@pytest.mark.parametrize(
    ("entrypoint", "options", "message"),
    [
        pytest.param("x" * ARGUMENT, {}, None, id="the longest command"),
        pytest.param("x" * (ARGUMENT + 1), {}, "entrypoint has 131072 bytes", id="a longer command"),
        pytest.param("ü" * (ARGUMENT // 2 + 1), {}, "entrypoint has 131072 bytes", id="bytes, not characters"),
        pytest.param("true", sized(ARGUMENT - 1024), None, id="the largest environment"),
        pytest.param("true", sized(ARGUMENT - 1023), "runtime_env and metadata have 130048 bytes", id="a larger one"),
        pytest.param("true", labelled(1024 * 1024), None, id="the largest request"),
        pytest.param("true", labelled(1024 * 1024 + 1), "the submission has 1048577 bytes", id="a larger request"),
    ],
)
def test_size_limits_of_linux_and_ray(entrypoint: str, options: dict[str, Any], message: str | None) -> None:
    """An entrypoint, environment or request of one byte over the limit of Linux or Ray is refused."""
    if message is None:
        assert build_submission(entrypoint, **options)
    else:
        with pytest.raises(ValueError, match=f"^{message}"):
            build_submission(entrypoint, **options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"runtime_env": {"pip": ["numpy==1.0"] * 20_000}},
            r"The largest part is runtime_env\['pip'\] .*put the requirements into a file of the working_dir",
        ),
        ({"runtime_env": {"env_vars": {"A": "x" * 200_000}, "pip": ["a"]}}, r"\['env_vars'\] with 20\d{4} bytes: put"),
        ({"metadata": {"a": "x" * 200_000}}, r"metadata with 20\d{4} bytes: shorten it"),
    ],
)
def test_largest_part_is_named(options: dict[str, Any], said: str) -> None:
    """If the environment is too large, the error names its largest part and how to shorten it."""
    with pytest.raises(ValueError, match=said):
        build_submission("true", **options)


def test_nonce_repeats_a_submission() -> None:
    """The nonce of an earlier submission repeats that submission; without it the submission is a new one."""
    nonce = new_nonce()
    first, again = (build_submission("true", submission_id="a", nonce=nonce) for _ in range(2))

    assert first == again
    assert first.metadata == {NONCE: nonce}
    assert build_submission("true", submission_id="a", metadata={"b": "c"}, nonce=nonce).metadata == {
        NONCE: nonce,
        "b": "c",
    }
    assert nonce != new_nonce()
    assert build_submission("true", nonce=None).metadata[NONCE]


@pytest.mark.parametrize(
    "runtime_env",
    [
        pytest.param({"pip": ["-r https:/x --index-url https://me:m4rked@host"]}, id="line of pip"),
        pytest.param({"uv": "https://me:m4rked@host/requirements.txt"}, id="file of uv"),
        pytest.param({"conda": "https://me:m4rked@host/environment.yml"}, id="file of conda"),
        pytest.param({"working_dir": "HTTPS://me:m4rked@host/code.zip"}, id="working_dir"),
        pytest.param({"py_modules": ["HTTPS://me:m4rked@host/code/"]}, id="py_modules"),
        pytest.param({"env_vars": {"A": "m4rked"}, "config": {"a": {1, 2}}}, id="not JSON"),
        pytest.param({"env_vars": {"A": "m4rked \ud800"}}, id="not UTF-8"),
    ],
)
def test_error_about_a_runtime_environment_shows_no_credentials(runtime_env: dict[str, Any]):
    """An error that quotes a part of the environment hides credentials in its URLs, and nothing is chained to it."""
    with pytest.raises(ValueError, match="runtime_env") as caught:
        build_submission("true", runtime_env=runtime_env)

    assert "m4rked" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
