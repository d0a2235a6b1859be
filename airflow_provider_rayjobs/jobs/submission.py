"""
A submission, checked before anything is sent; no I/O.

Ray validates little: a misspelt key of a runtime environment is ignored in silence, an id with a slash leaves
a record that nobody can delete. So what can be known to be wrong is said here, and nothing was sent.
"""

from __future__ import annotations

import difflib
import json
import re
import secrets
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from airflow_provider_rayjobs.jobs.models import JobSubmission


class SubmissionOptions(TypedDict, total=False):
    """
    What a submission may say besides its entrypoint.

    ``submission_id``
        at most 200 of ``A-Z a-z 0-9 _ . -``; made up when not given.
    ``runtime_env``
        Ray's runtime environment. Clients pack and send the local code that it names; in a submission itself, paths are
        URIs that the cluster can read.
    ``metadata``
        text to text; ``job_name`` is the name in the dashboard.
    ``entrypoint_num_cpus``, ``entrypoint_num_gpus``
        cores and GPUs reserved for the entrypoint command itself, fractions allowed.
    ``entrypoint_memory``
        bytes reserved for the entrypoint command.
    ``entrypoint_resources``
        custom resources reserved for it, name to quantity.
    ``entrypoint_label_selector``
        labels of the node to run it on, text to text (Ray 2.54 and later).
    """

    submission_id: str | None
    runtime_env: Mapping[str, Any] | None
    metadata: Mapping[str, str] | None
    entrypoint_num_cpus: float | None
    entrypoint_num_gpus: float | None
    entrypoint_memory: int | None
    entrypoint_resources: Mapping[str, float] | None
    entrypoint_label_selector: Mapping[str, str] | None


# By this a submission recognises its own job, when the answer to it was lost and Ray says that the id is
# taken.
NONCE = "submission_nonce"

# Ray keeps the id in file names (255 bytes with "job-driver-" and ".log") and in URLs.
MAX_ID_LENGTH = 200
_SUBMISSION_ID = re.compile(rf"[A-Za-z0-9_.-]{{1,{MAX_ID_LENGTH}}}")
# The form of a Ray Core job id: Ray would take such a submission id for one.
_RAY_CORE_JOB_ID = re.compile(r"[0-9a-f]{8}")

# Source: Ray 2.60 ``runtime_env/runtime_env.py``, ``RuntimeEnv.known_fields``; "nsight", "rocprof_sys" and
# "mpi" are what its constructor, or an older Ray, calls them.
RUNTIME_ENV_KEYS = frozenset({
    "py_modules", "py_executable", "java_jars", "working_dir", "conda", "pip", "uv", "container", "excludes",
    "env_vars", "_ray_release", "_ray_commit", "_inject_current_ray", "config", "worker_process_setup_hook",
    "_nsight", "nsight", "_rocprof_sys", "rocprof_sys", "image_uri", "mpi",
})  # fmt: skip

# Linux takes no argument and no environment variable over 32 pages (128 KiB) including its end:
# MAX_ARG_STRLEN. The entrypoint is one such argument, runtime environment and metadata together are one such
# variable.
_ARGUMENT_LIMIT = 128 * 1024 - 1
# What Ray adds around and into that variable.
_VARIABLE_MARGIN = 1024
# aiohttp's bound on a request's body, which Ray leaves as it is.
_BODY_LIMIT = 1024 * 1024


# How what is too large gets smaller.
_REQUIREMENTS = (
    "put the requirements into a file of the working_dir and give "
    "['-r ${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}/requirements.txt']."
)
_SHORTER = {
    "runtime_env['pip']": _REQUIREMENTS,
    "runtime_env['uv']": _REQUIREMENTS,
    "runtime_env['conda']": "give the name of an environment that the cluster has, or an image_uri.",
    "runtime_env['excludes']": "put the patterns into a .rayignore of the working_dir.",
    "runtime_env['env_vars']": "put the data into a file of the working_dir, or an object store.",
}


def new_nonce() -> str:
    """Return what tells one submission from every other."""
    return secrets.token_hex(8)


def build_submission(entrypoint: str | Sequence[str], *, nonce: str | None = None, **options: Any) -> JobSubmission:
    """
    Make a submission of what a caller asks for.

    :param entrypoint: a shell command; or its arguments, which are quoted so that no value leaves its place.
    :param nonce: of a submission that may have been sent before, to send the same one again.
    :param options: see :class:`SubmissionOptions`.
    :raises ValueError: for what can never work, naming the field; nothing has been sent.
    :raises TypeError: for an option that there is not.
    """
    if unknown := options.keys() - SubmissionOptions.__annotations__.keys():
        raise TypeError(f"a submission has no {', '.join(sorted(unknown))}")
    runtime_env = options.get("runtime_env") or None
    if runtime_env is not None:
        check_runtime_env(runtime_env)
    submission = JobSubmission(
        entrypoint=_command(entrypoint),
        submission_id=check_submission_id(options.get("submission_id") or f"rayjob-{secrets.token_hex(8)}"),
        runtime_env=runtime_env,
        metadata={NONCE: nonce or new_nonce()} | check_metadata(options.get("metadata") or {}),
        entrypoint_num_cpus=_quantity("entrypoint_num_cpus", options.get("entrypoint_num_cpus")),
        entrypoint_num_gpus=_quantity("entrypoint_num_gpus", options.get("entrypoint_num_gpus")),
        entrypoint_memory=_whole_bytes(options.get("entrypoint_memory")),
        entrypoint_resources=_resources(options.get("entrypoint_resources")),
        entrypoint_label_selector=_texts("entrypoint_label_selector", options.get("entrypoint_label_selector")),
    )
    _check_size(submission)
    return submission


def check_submission_id(submission_id: str) -> str:
    """
    Return the id if Ray can hold it.

    :raises ValueError: for other characters than ``A-Z a-z 0-9 _ . -``, more than 200, or a Ray Core job id's
        form.
    """
    if not isinstance(submission_id, str) or not _SUBMISSION_ID.fullmatch(submission_id):
        raise ValueError(
            f"submission_id {submission_id!r} is none that Ray can hold: 1 to 200 of the characters A-Z a-z 0-9 _ . -"
        )
    if submission_id in (".", ".."):
        raise ValueError(f"submission_id {submission_id!r} is a step in a path; Ray would never find the job again")
    if _RAY_CORE_JOB_ID.fullmatch(submission_id):
        raise ValueError(
            f"submission_id {submission_id!r} has the form of a Ray Core job id (8 hexadecimal digits) and would be "
            "mistaken for one"
        )
    return submission_id


def check_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """
    Return the metadata if Ray can take it.

    :raises ValueError: for what is not text to text, for ``job_submission_id``, which mis-files the driver, and
        for the nonce, which tells one submission from another.
    """
    _texts("metadata", metadata)
    if "job_submission_id" in metadata:
        raise ValueError(
            "metadata must not hold job_submission_id: Ray files the driver under it. Use submission_id for the id."
        )
    if NONCE in metadata:
        raise ValueError(f"metadata must not hold {NONCE}: each submission makes its own")
    return dict(metadata)


def check_runtime_env(runtime_env: Mapping[str, Any]) -> None:
    """
    Refuse a runtime environment that Ray would ignore in part, or look for on its own disk.

    :raises ValueError: for a key that Ray does not know (it ignores those in silence), env_vars that are not
        text to text, and local paths, which only mean something on the machine that submits.
    """
    check_runtime_env_keys(runtime_env)
    _texts("runtime_env['env_vars']", runtime_env.get("env_vars"))
    _check_uri("working_dir", runtime_env.get("working_dir"))
    for key in ("py_modules", "java_jars"):
        uris = runtime_env.get(key) or []
        if isinstance(uris, str) or not isinstance(uris, Sequence):
            raise ValueError(f"runtime_env[{key!r}] must be a list of URIs")
        for number, uri in enumerate(uris):
            _check_uri(f"{key}[{number}]", uri)
    for key in ("pip", "uv"):
        _check_packages(key, runtime_env.get(key))
    conda = runtime_env.get("conda")
    if isinstance(conda, str) and ("/" in conda or conda.endswith((".yml", ".yaml"))):
        raise ValueError(
            f"runtime_env['conda'] is a path ({conda!r}), which the cluster would look for on its own disk. Give the "
            "environment as a dictionary, or the name of one that the cluster has."
        )
    try:
        json.dumps(runtime_env, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise ValueError(f"runtime_env cannot be sent as JSON: {error}") from error


def check_runtime_env_keys(runtime_env: Mapping[str, Any]) -> None:
    """
    Refuse what Ray would ignore in silence.

    :raises ValueError: for a key that Ray does not know, with the nearest one that it does.
    """
    if not isinstance(runtime_env, Mapping):
        raise ValueError(f"runtime_env must be a dictionary, not {type(runtime_env).__name__}")
    for key in runtime_env:
        if key not in RUNTIME_ENV_KEYS:
            near = difflib.get_close_matches(str(key), RUNTIME_ENV_KEYS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; Ray knows {', '.join(sorted(RUNTIME_ENV_KEYS))}"
            raise ValueError(f"runtime_env has a key that Ray does not know and would ignore: {key!r}{hint}")


def _check_packages(key: str, value: Any) -> None:
    packages = value.get("packages") if isinstance(value, Mapping) else value
    lines = [packages] if isinstance(packages, str) else packages or []
    for line in lines:
        # a text in place of the list is a file's name; "-r" and "-c" name files inside the list, unless a URL, or what
        # Ray fills in on the node, says where they are
        if isinstance(packages, str) or re.match(
            r"\s*(-r|-c|--requirement|--constraint)\b(?!\s*=?\s*(\$\{RAY_RUNTIME_ENV_CREATE_WORKING_DIR\}|\w+://))",
            str(line),
        ):
            raise ValueError(
                f"runtime_env[{key!r}] names a file ({line!r}), which the cluster would look for on its own disk. Give "
                "the packages themselves, as a list."
            )


def _check_text(field: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{field} holds what is no character ({error.reason})") from None


def _check_uri(field: str, value: Any) -> None:
    if value is None:
        return
    if not isinstance(value, str) or not re.match(r"[a-z][a-z0-9+]*://", value):
        raise ValueError(
            f"runtime_env[{field!r}] is {value!r}: a local path means nothing to the cluster. Give a URI that it can "
            "read (gcs://, s3://, gs://, https://, ...; file:// or local:// for what lies on its nodes)."
        )


def _command(entrypoint: str | Sequence[str]) -> str:
    if isinstance(entrypoint, str):
        command = entrypoint
    elif isinstance(entrypoint, Sequence) and all(isinstance(argument, str) for argument in entrypoint):
        command = shlex.join(entrypoint)
    else:
        # not what it holds: that may be a secret
        raise ValueError("entrypoint must be a command, or a list of its arguments as text")
    if not command.strip():
        raise ValueError("entrypoint is empty: there is nothing to run")
    _check_text("entrypoint", command)
    if "\0" in command:
        raise ValueError("entrypoint holds a NUL character, which no command line can hold")
    if (size := len(command.encode())) > _ARGUMENT_LIMIT:
        raise ValueError(
            f"entrypoint has {size} bytes; Linux starts no command over {_ARGUMENT_LIMIT}. Put the data into a file or "
            "an object store and pass its address."
        )
    return command


def _texts(field: str, value: Any) -> Any:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise ValueError(f"{field} must be a dictionary of text to text, not {type(value).__name__}")
    for key, text in value.items():
        if isinstance(key, str) and isinstance(text, str):
            _check_text(f"{field}[{key!r}]", key + text)
        else:
            wrong = key if not isinstance(key, str) else text
            raise ValueError(
                f"{field} must be text to text; at {key!r} there is {type(wrong).__name__} instead of text"
            )
    return dict(value)


def _quantity(field: str, value: Any) -> float | None:
    if value is None:
        return None
    # bool is an int to Python, and never what somebody means by a number of cores
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise ValueError(f"{field} must be a number, 0 or more, not {value!r}")
    return value


def _whole_bytes(value: Any) -> int | None:
    quantity = _quantity("entrypoint_memory", value)
    if quantity is not None and quantity != int(quantity):
        raise ValueError(f"entrypoint_memory must be a whole number of bytes, not {value!r}")
    return None if quantity is None else int(quantity)


def _resources(value: Any) -> dict[str, float] | None:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise ValueError(f"entrypoint_resources must be a dictionary of names to numbers, not {value!r}")
    resources = {}
    for name, number in value.items():
        quantity = _quantity(f"entrypoint_resources[{name!r}]", number)
        if quantity is None:
            raise ValueError(f"entrypoint_resources[{name!r}] must be a number, not None")
        resources[str(name)] = quantity
    return resources


def _check_size(submission: JobSubmission) -> None:
    variable = len(json.dumps({"runtime_env": submission.runtime_env, "metadata": submission.metadata}).encode())
    if variable > _ARGUMENT_LIMIT - _VARIABLE_MARGIN:
        parts = {f"runtime_env[{key!r}]": value for key, value in (submission.runtime_env or {}).items()}
        sizes = {name: len(json.dumps(value)) for name, value in {**parts, "metadata": submission.metadata}.items()}
        largest = max(sizes, key=lambda name: sizes[name])
        raise ValueError(
            f"runtime_env and metadata have {variable} bytes together; Ray hands them to the driver as one environment "
            f"variable, which Linux limits to {_ARGUMENT_LIMIT}. The largest part is {largest} with {sizes[largest]} "
            f"bytes: {_SHORTER.get(largest, 'shorten it.')}"
        )
    body = len(json.dumps(submission.to_json()).encode())
    if body > _BODY_LIMIT:
        raise ValueError(f"the submission has {body} bytes; Ray takes no request over {_BODY_LIMIT}")
