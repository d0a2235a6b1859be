"""The program that calls a function on the cluster: its results, its errors, its exit codes."""

from __future__ import annotations

import base64
import json
import math
import pickle
import re
import shutil
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.bases.xcom import BaseXCom
from airflow.sdk.definitions.param import ParamsDict
from function_runs import NONCE, load, read, run, run_command
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airflow_provider_rayjobs import in_job
from airflow_provider_rayjobs.in_job import MAX_RESULT_SIZE, ResultError, to_json
from airflow_provider_rayjobs.jobs.logs.messages import Progress

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@settings(deadline=None)
@given(JSON)
def test_json_round_trip(value: Any):
    """Every value of JSON arrives as it was sent."""
    text = to_json(value, "result")

    assert json.loads(text) == value
    assert text.isascii()


@settings(deadline=None, max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(JSON | st.text("#ray_job \n"), max_size=200), st.dictionaries(st.text(min_size=1), JSON))
def test_arguments_and_results_round_trip(tmp_path: Path, values: list[Any], named: Mapping[str, Any]):
    """Arguments reach the function, and its value comes back, whatever text they contain."""
    module = load(tmp_path, "@on_ray\ndef echo(values, named):\n    return {'values': values, 'named': named}")

    assert run(module.echo, tmp_path, [values], {"named": named}).value == {"values": values, "named": named}


@pytest.mark.parametrize("size", [0, 1, 4000, MAX_RESULT_SIZE - 2])
def test_sizes_of_results(tmp_path: Path, size: int):
    """A result has up to 1 MiB as JSON."""
    module = load(tmp_path, "@on_ray\ndef f(size):\n    return 'x' * size")
    ended = run(module.f, tmp_path, [size])

    assert ended.value == "x" * size
    assert max(map(len, ended.log.split(b"\n"))) < 4096


def test_result_that_is_too_large(tmp_path: Path):
    """A result of more than 1 MiB is an error that no retry can fix."""
    module = load(tmp_path, f"@on_ray\ndef f():\n    return 'x' * {MAX_RESULT_SIZE - 1}")
    ended = run(module.f, tmp_path)

    assert ended.exit_code == 98
    assert ended.messages.result is None
    assert ended.messages.failure.message == (
        "the result has 1048577 bytes, and at most 1048576 can be sent. Write it to a file or an object store and "
        "return its path, or set package_storage."
    )


@pytest.mark.parametrize("result_serializer", ["json", "cloudpickle"])
def test_result_that_is_stored(tmp_path: Path, result_serializer: str):
    """A large result is written into the package storage, and its message has size and digest."""
    module = load(tmp_path, f"@on_ray\ndef f():\n    return 'x' * {MAX_RESULT_SIZE}")
    ended = run(module.f, tmp_path, storage=f"file://{tmp_path}/storage/", result_serializer=result_serializer)
    content = (tmp_path / "storage" / f"ray_job_result_{NONCE}.json").read_bytes()
    result = ended.messages.result.parse(content)

    assert ended.exit_code == 0, ended.shown
    assert len(ended.log) < 500
    assert result.is_pickled is (result_serializer == "cloudpickle")
    assert (
        pickle.loads(base64.b64decode(result.value)) if result.is_pickled else result.value
    ) == "x" * MAX_RESULT_SIZE
    assert [path.name for path in (tmp_path / "storage").iterdir()] == [f"ray_job_result_{NONCE}.json"]


@pytest.mark.parametrize(
    ("smart_open", "reason"),
    [
        (None, "No module named 'smart_open'"),
        ("def open(*_): raise NotImplementedError('no extra')", "no extra"),
    ],
)
def test_storage_that_needs_a_package(tmp_path: Path, smart_open: str | None, reason: str):
    """Without smart_open on the cluster, or its extra, a large result is an error that says what to install."""
    module = load(tmp_path, f"@on_ray\ndef f():\n    return 'x' * {MAX_RESULT_SIZE}")
    python = _python_without_airflow(tmp_path)
    if smart_open:
        (tmp_path / "work").mkdir()
        (tmp_path / "work" / "smart_open.py").write_text(smart_open)
    ended = run(module.f, tmp_path, storage="s3://bucket/r/", python=python)

    assert ended.exit_code == 98
    assert ended.messages.failure.message == (
        f"the result has {MAX_RESULT_SIZE + 2} bytes, and is stored at s3://bucket/r/ray_job_result_{NONCE}.json, "
        "for which the job needs the Python package smart_open. Add it to pip in the runtime_env, with its extra for "
        f"this storage. It says: {reason}"
    )


def nested(depth: int) -> Any:
    return [nested(depth - 1)] if depth else 0


def test_nested_result_fits_into_an_xcom():
    """What can be sent can be stored: Airflow allows fewer levels than JSON."""
    value = nested(200)

    assert json.loads(to_json(value, "result")) == value
    assert BaseXCom.serialize_value(value) == value


class Model:
    def model_dump(self) -> None: ...


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (
            {"model": [0, 1, 2, {1}]},
            'result["model"][3] is of type set, which JSON cannot hold. Use sorted() or list().',
        ),
        ({"a": math.nan}, 'result["a"] is nan, which JSON cannot hold. Use None.'),
        ([{3: 1}], "result[0] has the key 3 of type int. JSON has only text as keys. Use str()."),
        (b"x", "result is of type bytes, which JSON cannot hold. Use .decode()."),
        (Path("x"), f"result is of type {Path.__module__}.PosixPath, which JSON cannot hold. Use str()."),
        (Model(), "result is of type test_runner.Model, which JSON cannot hold. Use .model_dump(mode='json')."),
        (object(), "result is of type object, which JSON cannot hold. Use text, numbers, lists and dictionaries, or"),
        ("\ud800", "result is text that UTF-8 cannot encode."),
        ({"\udc80": 1}, "result has the key '\\udc80', which UTF-8 cannot encode."),
        ([2**64], "result[0] is an integer of more than 64 bits. Use str() or float()."),
        (-(2**63) - 1, "result is an integer of more than 64 bits."),
        ([10**5000], "result[0] is an integer of more than 64 bits."),
        (nested(201), f"result{'[0]' * 200} contains itself, or is nested too deeply."),
    ],
)
def test_what_is_not_json_is_named_with_its_place(value: Any, problem: str):
    """The error names the place and the type, and says what to do."""
    with pytest.raises(ResultError) as raised:
        to_json(value, "result")

    assert str(raised.value).startswith(problem)


@pytest.mark.parametrize(
    ("module", "name", "hint"),
    [
        ("numpy", "float32", "numpy.float32, which JSON cannot hold. Use .item()."),
        ("numpy", "ndarray", "numpy.ndarray, which JSON cannot hold. Use .tolist()."),
        ("pandas.core.frame", "DataFrame", "pandas.DataFrame, which JSON cannot hold. Use .to_dict('records')."),
        ("pandas.core.series", "Series", "pandas.Series, which JSON cannot hold. Use .tolist()."),
        ("ray._raylet", "ObjectRef", "ray.ObjectRef, which JSON cannot hold. Get its value first, with ray.get()."),
        ("datetime", "date", "datetime.date, which JSON cannot hold. Use .isoformat() or str()."),
        ("pendulum.datetime", "DateTime", "DateTime, which JSON cannot hold. Use .isoformat() or str()."),
    ],
)
def test_hints_for_well_known_types(module: str, name: str, hint: str):
    """Values of numpy, pandas and Ray get a hint."""
    value = type(name, (), {"__module__": module})()

    with pytest.raises(ResultError, match=re.escape(hint)):
        to_json(value, "result")


def test_value_that_contains_itself():
    """A list that contains itself is an error, not a crash."""
    value: list[Any] = []
    value.append(value)

    with pytest.raises(ResultError, match="contains itself, or is nested too deeply"):
        to_json(value, "result")


def test_exception_of_the_function(tmp_path: Path):
    """The error has the class, the message, and the traceback with the lines of the user's file alone."""
    module = load(
        tmp_path,
        """
        @on_ray
        def f(x):
            def check(value):
                if value > 1:
                    raise ValueError(f"too large: {value}")
            try:
                check(x)
            except ValueError as error:
                raise LookupError("no value") from error
        """,
    )
    ended = run(module.f, tmp_path, [3])
    failure = ended.messages.failure

    assert ended.exit_code == 1
    assert (failure.function, failure.types, failure.message) == (
        "f", ("LookupError", "Exception", "BaseException"), "no value"
    )  # fmt: skip
    file = tmp_path / "dag_file.py"
    frames = [line.strip() for line in failure.traceback.splitlines() if line.startswith("  File ")]
    assert frames == [
        f'File "{file}", line 8, in f',
        f'File "{file}", line 6, in check',
        f'File "{file}", line 10, in f',
    ]
    assert '    raise ValueError(f"too large: {value}")\n' in failure.traceback
    assert failure.traceback.endswith("LookupError: no value\n")
    assert ended.shown == failure.traceback.removesuffix("\n"), "the job's log has the traceback, too"


def test_async_function_that_raises(tmp_path: Path):
    """The traceback of an async function has no frames of asyncio."""
    ended = run(load(tmp_path, "@on_ray\nasync def f():\n    raise KeyError('a')").f, tmp_path)

    assert ended.messages.failure.types[0] == "KeyError"
    assert ended.messages.failure.traceback.count("  File ") == 1


def test_missing_module_on_the_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An import at the top of the file that fails on the cluster shows its line."""
    (tmp_path / "only_here.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    module = load(tmp_path, "\nimport only_here\n@on_ray\ndef f():\n    only_here")
    failure = run(module.f, tmp_path).messages.failure

    assert failure.types[0] == "ModuleNotFoundError"
    assert "line 2, in <module>\n    import only_here\n" in failure.traceback


@pytest.mark.parametrize(
    ("body", "exit_code"),
    [
        ("from airflow.exceptions import AirflowSkipException\n    raise AirflowSkipException('no data')", 99),
        ("from airflow.sdk.exceptions import AirflowFailException\n    raise AirflowFailException('no data')", 98),
        ("class AirflowSkipException(Exception): pass\n    raise AirflowSkipException('no data')", 99),
        ("class Mine(Skip): pass\n    raise Mine('no data')", 99),
        ("import sys\n    sys.exit(7)", 7),
        ("import sys\n    sys.exit(0)", 1),
        ("import sys\n    sys.exit('bad')", 1),
        ("raise KeyboardInterrupt", 1),
        ("return object()", 98),
        ("import sys\n    sys.exit(256)", 1),
        ("import sys\n    sys.stderr = None\n    raise Skip('no data')", 99),
        ("import sys\n    sys.stderr.close()\n    raise ValueError('no data')", 1),
        ("import os\n    os.environ.clear()\n    raise ValueError('no data')", 1),
        ("class Mine(Exception):\n        def __str__(self): raise SystemExit(0)\n    raise Mine", 1),
    ],
)
def test_exit_codes(tmp_path: Path, body: str, exit_code: int):
    """Airflow's exceptions skip or fail the task without Airflow on the cluster; sys.exit() keeps its code."""
    top = "from airflow.providers.common.compat.sdk import AirflowSkipException as Skip\n"
    ended = run(
        load(tmp_path, f"{top}@on_ray\ndef f():\n    {body}").f, tmp_path, python=_python_without_airflow(tmp_path)
    )

    assert ended.exit_code == exit_code, ended.shown
    assert ended.messages.failure is not None
    assert ended.messages.result is None


def _python_without_airflow(folder: Path) -> str:
    script = folder / "python"
    script.write_text(f'#!/bin/sh\nexec "{shutil.which("python3", path="/usr/bin:/usr/local/bin")}" -S "$@"\n')
    script.chmod(0o755)
    return str(script)


def test_error_that_cannot_be_sent(tmp_path: Path):
    """The exit code skips the task, although the function has closed the log."""
    top = "from airflow.providers.common.compat.sdk import AirflowSkipException as Skip\n"
    module = load(tmp_path, f"{top}@on_ray\ndef f():\n    import os\n    os.closerange(3, 100)\n    raise Skip")
    ended = run(module.f, tmp_path)

    assert (ended.exit_code, ended.messages.failure) == (99, None)


def test_traceback_that_cannot_be_shown(tmp_path: Path):
    """An exception arrives although its traceback cannot be formatted."""
    module = load(
        tmp_path,
        """
        @on_ray
        def f():
            class Strange(Exception):
                @property
                def __cause__(self):
                    raise RuntimeError("no cause")
            raise Strange("no data")
        """,
    )
    ended = run(module.f, tmp_path)

    assert ended.messages.failure.message == "no data"
    assert ended.shown == "f.<locals>.Strange: no data"


def test_pickled_function_and_another_python(tmp_path: Path):
    """A pickled function on another minor version of Python is an error that names both versions."""
    call = tmp_path / "package" / "ray_job_function" / "call.json"
    module = load(tmp_path, "@on_ray\ndef f():\n    return 1")
    run(module.f, tmp_path, serializer="cloudpickle")
    call.write_text(json.dumps(json.loads(call.read_text()) | {"python": [2, 7]}))
    ended = run_command([sys.executable, "-m", "ray_job_function"], tmp_path, tmp_path / "package")
    version = "{}.{}".format(*sys.version_info)

    assert ended.exit_code == 1
    assert f"are 2.7 and {version}. Use serializer='json'" in ended.messages.failure.message


def test_cloudpickle_of_ray(tmp_path: Path):
    """Without cloudpickle on the cluster, the copy in Ray loads the function and pickles its value."""
    pytest.importorskip("ray")
    site = tmp_path / "site"
    site.mkdir()
    for path in Path(pytest.importorskip("cloudpickle").__file__).parents[1].iterdir():
        if not path.name.startswith("cloudpickle"):
            (site / path.name).symlink_to(path)
    module = load(tmp_path, "@on_ray\ndef f(x):\n    offset = 2\n    return (lambda: x + offset)")
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="$PYTHONPATH:{site}" exec "{sys.executable}" -S "$@"\n')
    python.chmod(0o755)
    ended = run(module.f, tmp_path, [1], python=str(python), serializer="cloudpickle", result_serializer="cloudpickle")

    assert ended.exit_code == 0, ended.shown
    assert pickle.loads(base64.b64decode(ended.value))() == 3


def test_collections_of_airflow_are_plain(tmp_path: Path):
    """Params, at any place in the arguments, arrive as dictionaries. A pickle keeps the types of the user's own."""
    pytest.importorskip("cloudpickle")
    module = load(tmp_path, "@on_ray\ndef f(x):\n    return [str(type(x[0])), str(x[1])]")
    args = [(Counter("aab"), (ParamsDict({"a": [1]}),))]

    assert run(module.f, tmp_path, args).value == ["<class 'dict'>", "[{'a': [1]}]"]
    pickled = run(module.f, tmp_path, args, serializer="cloudpickle").value
    assert pickled == ["<class 'collections.Counter'>", "({'a': [1]},)"]


def test_substitutes_in_a_pickle(tmp_path: Path):
    """A pickled function reports progress and skips without this package and Airflow on the cluster."""
    cloudpickle = pytest.importorskip("cloudpickle")
    module = load(
        tmp_path,
        """
        from airflow.providers.common.compat.sdk import AirflowSkipException
        from airflow_provider_rayjobs.in_job import report_progress

        @on_ray
        def f():
            report_progress(1, 2)
            raise AirflowSkipException("no data")
        """,
    )
    sys.modules["dag_file"] = module
    try:
        run(module.f, tmp_path, serializer="cloudpickle")
    finally:
        del sys.modules["dag_file"]
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "cloudpickle").symlink_to(Path(cloudpickle.__file__).parent)
    command = [sys._base_executable, "-S", "-m", "ray_job_function"]  # this minor version, without site-packages
    ended = run_command(command, tmp_path, tmp_path / "package", tmp_path / "site")

    assert ended.exit_code == 99, ended.shown
    assert str(ended.messages.progress) == "1 of 2 (50%)"


def test_messages_can_be_imported_at_the_top_of_the_file(tmp_path: Path):
    """The function reports progress without this package on the cluster."""
    module = load(
        tmp_path,
        """
        from airflow_provider_rayjobs.in_job import report_progress

        @on_ray
        def f():
            for epoch in range(1, 11):
                report_progress(epoch, 10, f"epoch {epoch}")
        """,
    )
    ended = run(module.f, tmp_path, python=_python_without_airflow(tmp_path))

    assert ended.exit_code == 0, ended.shown
    assert ended.value is None
    assert ended.messages.results == 1
    assert str(ended.messages.progress) == "10 of 10 (100%): epoch 10"
    assert ended.messages.progresses == 2, "a process sends one a second, and the last one"


def test_asset_extra(tmp_path: Path):
    """What a function adds in several calls is one dictionary, and what is no JSON is its error."""
    top = "from airflow_provider_rayjobs.in_job import add_asset_extra\n"
    body = "add_asset_extra({'rows': 1, 'day': 'x'})\n    add_asset_extra({'rows': 2})"
    ended = run(load(tmp_path, f"{top}@on_ray\ndef f():\n    {body}").f, tmp_path)
    assert ended.messages.extra == {"rows": 2, "day": "x"}

    for wrong, message in (
        ("{'rows': {1}}", 'extra["rows"] is of type set'),
        ("{'a': 'x' * 70_000}", "has 70008 bytes"),
        ("['rows']", "extra is of type list, not a dictionary."),
    ):
        failed = run(load(tmp_path, f"{top}@on_ray\ndef f():\n    add_asset_extra({wrong})").f, tmp_path)
        assert failed.exit_code == 98
        assert message in failed.messages.failure.message


@pytest.mark.parametrize("top", [True, False])
def test_messages_of_a_pickled_function(tmp_path: Path, top: bool):
    """A pickled function reports progress, too, without this package on the cluster."""
    line = "from airflow_provider_rayjobs.in_job import report_progress\n"
    (tmp_path / "work" / "airflow_provider_rayjobs").mkdir(parents=True)
    (tmp_path / "work" / "airflow_provider_rayjobs" / "__init__.py").touch()
    body = "report_progress(1, 2)" if top else f"{line}    report_progress(1, 2)"
    module = load(tmp_path, f"{line if top else ''}@on_ray\ndef f():\n    {body}")
    ended = run(module.f, tmp_path, serializer="cloudpickle")

    assert ended.messages.progress == Progress(1, 2), ended.shown


def test_last_progress_is_sent_at_the_end(tmp_path: Path):
    """A process that ends sends the progress that waited for its turn."""
    module = load(
        tmp_path,
        """
        @on_ray
        def f():
            from airflow_provider_rayjobs.in_job import report_progress
            report_progress(1)
            report_progress(2.5, text="two\\nlines")
            raise ValueError
        """,
    )
    ended = run(module.f, tmp_path, python=_python_without_airflow(tmp_path))

    assert str(ended.messages.progress) == "2.5: two lines"


def test_progress_beyond_the_total(tmp_path: Path):
    """A process sends one message a second, also if it reports the end of its work again and again."""
    program = "import messages\nfor number in range(1000): messages.report_progress(number, 0)"
    shutil.copy(in_job.__file__, tmp_path / "messages.py")
    ended = run_command([sys.executable, "-c", program], tmp_path, tmp_path)

    assert str(ended.messages.progress) == "999"
    assert ended.messages.progresses < 100


@pytest.mark.parametrize("report", ["float('nan')", "1, float('inf')", "10**400", "2, text='\\udc80'"])
def test_progress_that_cannot_be_sent(tmp_path: Path, report: str):
    """No program fails because of its progress."""
    top = "from airflow_provider_rayjobs.in_job import report_progress\n"
    ended = run(load(tmp_path, f"{top}@on_ray\ndef f():\n    report_progress({report})\n    return 1").f, tmp_path)

    assert ended.value == 1
    assert ended.messages.broken == 0
    assert str(ended.messages.progress) in ("None", "2: ?")


def test_older_release_on_the_cluster(tmp_path: Path):
    """The messages come from the module that is sent with the function, not from another release on the cluster."""
    (tmp_path / "work" / "airflow_provider_rayjobs").mkdir(parents=True)
    (tmp_path / "work" / "airflow_provider_rayjobs" / "__init__.py").touch()
    top = "from airflow_provider_rayjobs.in_job import report_progress\n"
    ended = run(load(tmp_path, f"{top}@on_ray\ndef f():\n    report_progress(1)").f, tmp_path)

    assert ended.messages.progress == Progress(1), ended.shown


def test_other_processes_print_while_the_function_returns(tmp_path: Path):
    """The result arrives although processes and threads print into the same log, and all their lines are shown."""
    module = load(
        tmp_path,
        """
        @on_ray
        def f(lines):
            import subprocess, sys, threading
            program = f"import sys; [sys.stdout.write('line %d\\\\n' % i) for i in range({lines})]"
            printing = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(4)]
            def chatter():
                for each in printing:
                    while each.poll() is None:
                        print("tick", end="")
                        print("", flush=True)
            for _ in range(2):
                threading.Thread(target=chatter).start()
            return {"text": "x" * 900_000}
        """,
    )
    ended = run(module.f, tmp_path, [25_000])
    lines = [line for line in re.split(r"(?=line )|tick|\n", ended.shown) if line]

    assert ended.value == {"text": "x" * 900_000}
    assert sorted(lines) == sorted(f"line {number}" for number in range(25_000) for _ in range(4))


def test_process_that_the_function_forks(tmp_path: Path):
    """A forked process that returns from the function, too, does not replace the result."""
    body = "import os\n    child = os.fork()\n    if child: os.waitpid(child, 0)\n    return child > 0"
    ended = run(load(tmp_path, f"@on_ray\ndef f():\n    {body}").f, tmp_path)

    assert ended.value is True
    assert ended.messages.results == 1


def test_output_that_the_function_redirects(tmp_path: Path):
    """The result arrives although the function has closed and redirected its output, and emptied its environment."""
    module = load(
        tmp_path,
        """
        @on_ray
        def f():
            import os, sys
            sys.stdout = None
            os.dup2(os.open("/dev/null", os.O_WRONLY), 1)
            os.close(2)
            os.environ.clear()
            return 7
        """,
    )

    assert run(module.f, tmp_path).value == 7


def test_file_named_secrets_in_the_working_directory(tmp_path: Path):
    """A file of the user with the name of a module of Python is not taken for that module."""
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "secrets.py").write_text("PASSWORD = 'x'")

    assert (
        run(load(tmp_path, "@on_ray\ndef f():\n    import secrets\n    return secrets.PASSWORD").f, tmp_path).value
        == "x"
    )


def test_program_in_another_language(tmp_path: Path):
    """A shell script pushes a result and progress with one line each."""
    script = (
        'echo before; echo "##ray_job $RAY_JOB_NONCE progress {\\"done\\": 3}"; '
        'printf "unfinished "; echo "##ray_job $RAY_JOB_NONCE result [1, {\\"a\\": null}]"; echo line'
    )
    ended = run_command(["sh", "-c", script], tmp_path)

    assert ended.value == [1, {"a": None}]
    assert str(ended.messages.progress) == "3"
    assert ended.shown == "before\nunfinished line"


def test_helper_is_one_file(tmp_path: Path):
    """The module of the messages can be copied into a job under any name."""
    shutil.copy(in_job.__file__, tmp_path / "messages.py")
    program = "import messages; messages.push_result({'a': 1}); messages.push_result(2)"
    ended = run_command([_python_without_airflow(tmp_path), "-c", program], tmp_path, tmp_path)

    assert ended.value == 2
    assert ended.messages.results == 2


def test_rays_log_deduplication(tmp_path: Path):
    """Ray drops similar lines of its tasks, but no messages: two actors push a result and report progress."""
    deduplicator = pytest.importorskip("ray._private.ray_logging").LogDeduplicator(5, None, None)
    shutil.copy(in_job.__file__, tmp_path / "messages.py")
    program = "import messages; messages.report_progress(3, 5, 'x1'); messages.push_result(['x1'] * 3000)"
    actors = [run_command([sys.executable, "-c", program], tmp_path, tmp_path).log.decode() for _ in range(2)]
    batches = []
    for lines in zip(*map(str.splitlines, actors), strict=True):
        for pid, line in enumerate(lines):
            batches += deduplicator.deduplicate({"ip": "10.0.0.1", "pid": pid, "lines": [line]})
    batches += deduplicator.flush()
    log = "".join(f"(f pid={batch['pid']}) {line}\n" for batch in batches for line in batch["lines"])
    messages, shown = read(log.encode())

    assert (messages.results, messages.progresses, messages.broken) == (2, 2, 0)
    assert shown == ""


def test_nothing_is_sent_outside_of_a_job(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Without a nonce in the environment, a program that sends messages prints nothing."""
    monkeypatch.delenv(in_job.NONCE_VARIABLE, raising=False)
    in_job.push_result(1)
    in_job.report_progress(1, 1)

    assert capfd.readouterr().out == ""


def test_log_of_another_job(tmp_path: Path):
    """A function that prints the log of another job, or a message without the nonce, does not change its result."""
    other = f"##ray_job fedcba9876543210 result 1\n##ray_job {'0' * 15} result 2\n"
    module = load(tmp_path, f"@on_ray\ndef f():\n    print({other!r}, end='')\n    return 3")
    ended = run(module.f, tmp_path)

    assert (ended.value, ended.messages.results, ended.messages.broken) == (3, 1, 0)
    assert ended.shown == f"##ray_job {'0' * 15} result 2"
    assert NONCE.encode() in ended.log
