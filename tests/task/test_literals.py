"""Arguments that are checked while a DAG file is parsed, and those that are left alone until the task runs."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG, ObjectStoragePath, literal, task, task_group

from airflow_provider_rayjobs.cleanup import RayJobCleanupOperator
from airflow_provider_rayjobs.operators import RayJobDeleteOperator, RayJobStopOperator, RayJobSubmitOperator
from airflow_provider_rayjobs.sensors import RayJobSensor
from airflow_provider_rayjobs.task.literals import SUBMISSION_CHECKS

COMMAND = {"entrypoint": "true"}
JOB = {"submission_id": "job-1"}
MISTAKES = [
    # operator, its other arguments, the wrong one, the error
    (RayJobSubmitOperator, {}, {"entrypoint": " "}, "entrypoint is empty"),
    (RayJobSubmitOperator, {}, {"entrypoint": []}, "entrypoint is empty"),
    (RayJobSubmitOperator, COMMAND, {"runtime_env": {"pips": ["x"]}}, "unknown key 'pips' (did you mean 'pip'?)"),
    (RayJobSubmitOperator, COMMAND, {"runtime_env": {"env_var": "{{ x }}"}}, "did you mean 'env_vars'?"),
    (RayJobSubmitOperator, COMMAND, {"runtime_env": {"env_vars": {"A": [1]}}}, "runtime_env['env_vars']['A'] must be"),
    (RayJobSubmitOperator, COMMAND, {"entrypoint_num_cpus": "two"}, "entrypoint_num_cpus must be a number, not 'two'"),
    (RayJobSubmitOperator, COMMAND, {"entrypoint_num_gpus": -1}, "entrypoint_num_gpus must be a number, 0 or more"),
    (RayJobSubmitOperator, COMMAND, {"entrypoint_memory": "2 giga"}, "entrypoint_memory must be a number of bytes, or"),
    (RayJobSubmitOperator, COMMAND, {"entrypoint_resources": {"TPU": "x"}}, "entrypoint_resources['TPU'] must be"),
    (RayJobSubmitOperator, COMMAND, {"metadata": {"a": [1]}}, "metadata['a'] must be text, not list"),
    (RayJobSubmitOperator, COMMAND, {"metadata": {"submission_nonce": "x"}}, "must not contain submission_nonce"),
    (RayJobSubmitOperator, COMMAND, {"submission_id": "nightly/train"}, "submission_id 'nightly/train"),
    (RayJobSubmitOperator, COMMAND, {"submission_id": "n" * 201}, "Use 1 to 200 of the characters"),
    (RayJobSubmitOperator, COMMAND, {"entrypoint_num_cpus": "1O"}, "entrypoint_num_cpus must be a number, not '1O'"),
    (RayJobSubmitOperator, COMMAND, {"runtime_env": {"env_vars": {"A": [1], "B": "{{ x }}"}}}, "['A'] must be text"),
    (RayJobSubmitOperator, COMMAND, {"fetch_logs": "liev"}, "fetch_logs must be one of live, on_completion, never"),
    (RayJobSubmitOperator, COMMAND, {"log_lines_limit": 0}, "log_lines_limit must be a whole number, 1 or more"),
    (RayJobSubmitOperator, COMMAND, {"poll_interval": "5s"}, "poll_interval must be a number"),
    (RayJobSubmitOperator, COMMAND, {"job_timeout": timedelta(seconds=-1)}, "job_timeout must be a number of seconds"),
    (RayJobSubmitOperator, COMMAND, {"deferrable": "maybe"}, "deferrable must be True or False"),
    (RayJobSubmitOperator, COMMAND, {"fail_on_exit_code": ["x"]}, "fail_on_exit_code must be a number"),
    (RayJobSubmitOperator, COMMAND, {"package_secrets": ".env"}, "package_secrets must be True or False"),
    (RayJobSubmitOperator, COMMAND, {"first_contact_timeout": -1}, "first_contact_timeout must be a number of seconds"),
    (RayJobSubmitOperator, COMMAND, {"first_contact_timeout": "soon"}, "first_contact_timeout must be a number"),
    (RayJobSubmitOperator, COMMAND, {"stop_timeout": None}, "stop_timeout must be a number of seconds, 0 or more"),
    (RayJobSubmitOperator, COMMAND, {"wait_for_completion": None}, "wait_for_completion must be True or False"),
    (RayJobSubmitOperator, COMMAND, {"return_result": True, "wait_for_completion": "no"}, "return_result needs wait"),
    (RayJobSubmitOperator, COMMAND, {"metadata": {"A": None}}, "metadata['A'] must be text, not NoneType"),
    (RayJobSubmitOperator, COMMAND, {"runtime_env": {"env_vars": {"A": None}}}, "['A'] must be text, not NoneType"),
    (RayJobSubmitOperator, COMMAND, {"runtime_env": ["pip"]}, "runtime_env must be a dictionary, not list"),
    (RayJobSensor, {}, {"submission_id": ""}, "submission_id is empty"),
    (RayJobSensor, JOB, {"fetch_logs": "none"}, "fetch_logs must be one of live, on_completion, never, not 'none'"),
    (RayJobSensor, JOB, {"missing_timeout": "soon"}, "missing_timeout must be a number"),
    (RayJobStopOperator, JOB, {"stop_timeout": -1}, "stop_timeout must be a number of seconds"),
    (RayJobDeleteOperator, JOB, {"missing_ok": "perhaps"}, "missing_ok must be True or False"),
    (RayJobDeleteOperator, JOB, {"submission_id": None}, "submission_id is empty"),
    (RayJobCleanupOperator, {}, {"grace_period": "long"}, "grace_period must be a number"),
    (RayJobCleanupOperator, {}, {"dry_run": "maybe"}, "dry_run must be True or False, not 'maybe'"),
]
# Values that may be templates, in Jinja's delimiters or in those of a DAG, and a function of the context.
TEMPLATES = [
    "{{ params.x }}", "{% if x %}1{% endif %}", "[[ x ]]", "<% x %>", "${x}", "# x", "((x))", "@x@", "!x", "~x~",
    lambda context: 1,
]  # fmt: skip


@pytest.mark.parametrize(("operator", "given", "wrong", "message"), MISTAKES)
def test_mistake_is_an_error_of_the_dag_file(operator: Any, given: dict[str, Any], wrong: dict[str, Any], message: str):
    """A literal that cannot work is an error while the DAG is parsed, also in ``partial``. It names the task."""
    expected = f"^Task daily: .*{re.escape(message)}"

    with pytest.raises(ValueError, match=expected):
        operator(task_id="daily", **given | wrong)
    with pytest.raises(ValueError, match=expected):
        operator.partial(task_id="daily", **wrong)


def test_mistake_in_default_args():
    """The defaults of a DAG are checked as arguments of its tasks."""
    with (
        DAG("defaults", schedule=None, default_args={"poll_interval": "often"}),
        pytest.raises(ValueError, match="^Task daily: poll_interval must be a number of seconds.* not 'often'"),
    ):
        RayJobSubmitOperator(task_id="daily", entrypoint="true")


@pytest.mark.parametrize("field", sorted(SUBMISSION_CHECKS.keys() & set(RayJobSubmitOperator.template_fields)))
def test_templates_are_left_alone(field: str):
    """A template, a function of the context, an XCom and every other object are checked when the task runs."""
    with DAG("templates", schedule=None) as dag:

        @task
        def choose() -> Any:
            return 1

        chosen = choose()
        for value in (*TEMPLATES, chosen, chosen["x"], dag.param("x", 1), literal("a"), [chosen], {"a": chosen}):
            for task_id, given in (("one", value), ("two", {"a": "{{ x }}"}), ("three", ["{{ x }}"])):
                RayJobSubmitOperator(task_id=f"{task_id}_{len(dag.tasks)}", **COMMAND | {field: given})
        RayJobSubmitOperator.partial(task_id="mapped", **COMMAND | {field: chosen}).expand(job_name=["a", "b"])


@pytest.mark.parametrize(
    "arguments",
    [
        {"entrypoint": "for i in 1 2; do echo $i; done", "runtime_env": "env.yaml"},
        {"entrypoint": ["python", "train.py", 3], "submission_id": "", "job_name": None},
        {"submission_id": "n" * 200},
        {"runtime_env": {"working_dir": "nowhere", "pip": "nowhere.txt", "env_vars": {"A": 1, "B": "{{ x }}"}}},
        {"runtime_env": {"working_dir": Path("nowhere"), "py_modules": [Path("nowhere")]}},
        {"entrypoint_num_cpus": "0.5", "entrypoint_memory": "2GB", "entrypoint_resources": {"TPU": "4"}},
        {"metadata": {"day": 20260102, "share": "50%"}, "entrypoint_label_selector": {"zone": 1}},
        {"fail_on_exit_code": range(2, 5), "skip_on_exit_code": "99", "log_lines_limit": "None"},
        {"runtime_env": "{{ params.environment }}"},
        {"runtime_env": lambda context: {"pips": []}},
        {"package_storage": ObjectStoragePath("file:///nowhere"), "package_secrets": ["*.pem"]},
        {"pending_timeout": None, "job_timeout": "", "poll_interval": timedelta(seconds=3), "stop_on_kill": "no"},
        dict.fromkeys(
            (
                "submission_id",
                "metadata",
                "runtime_env",
                "entrypoint_num_cpus",
                "entrypoint_memory",
                "stop_on_kill",
                "poll_interval",
                "unreachable_timeout",
                "first_contact_timeout",
                "log_lines_limit",
                "fail_on_exit_code",
                "package_secrets",
                "log_flush_interval",
            )
        ),
        {"entrypoint_resources": {"TPU": None}, "runtime_env": {"env_vars": None, "pip": None}},
        {"return_result": True, "wait_for_completion": "{{ params.waits }}"},
    ],
    ids=",".join,
)
def test_arguments_that_may_work(arguments: dict[str, Any]):
    """What may work is no error while the DAG is parsed. A file is searched when the task runs."""
    RayJobSubmitOperator(task_id="daily", **COMMAND | arguments)


def test_ray_core_job_id():
    """An existing job may have the id of a Ray Core job, which no submission may have."""
    for operator in (RayJobSensor, RayJobStopOperator, RayJobDeleteOperator):
        operator(task_id="daily", submission_id="01000000")


def test_mapped_task():
    """``partial().expand()`` works. A wrong mapped value is an error of ``execute``, which ends the retries."""
    with DAG("mapped", schedule=None):
        mapped = RayJobSubmitOperator.partial(task_id="train", poll_interval=1).expand(entrypoint=["true", ""])
    for entrypoint in ("true", ""):
        unmapped = mapped.unmap({"entrypoint": entrypoint})
        assert (unmapped.entrypoint, unmapped.poll_interval) == (entrypoint, 1)


def test_submission_id_of_a_mapped_task():
    """The id of a mapped task gets its index, so 8 hexadecimal digits work. Without an index they are an error."""
    with DAG("ids", schedule=None):
        RayJobSubmitOperator.partial(task_id="train", submission_id="20260101").expand(entrypoint=["a", "b"])

        @task.ray_job(submission_id="20260101")
        def train(_number: int) -> None: ...

        train.expand(_number=[1, 2])

        @task_group
        def trainings(entrypoint: str) -> None:
            RayJobSubmitOperator(task_id="train", entrypoint=entrypoint, submission_id="20260101")

        trainings.expand(entrypoint=["a", "b"])
        with pytest.raises(ValueError, match="submission_id '20260101' is invalid"):
            RayJobSubmitOperator(task_id="alone", entrypoint="a", submission_id="20260101")


def test_subclass_with_its_own_constructor_is_checked_when_it_runs():
    """Such a subclass may give placeholders to the constructor, and replace them there or in ``execute``."""

    class Script(RayJobSubmitOperator):
        def __init__(self, *, script: str = "", runtime_env: dict[str, Any], **kwargs: Any) -> None:
            super().__init__(entrypoint=script, runtime_env=runtime_env, **kwargs)
            self.runtime_env = {"pip": runtime_env["requirements"]}

    class Renamed(RayJobSubmitOperator):
        ui_color = "#fff"

    script = Script(task_id="daily", runtime_env={"requirements": ["x"]})
    assert (script.entrypoint, script.runtime_env) == ("", {"pip": ["x"]})
    with DAG("mapped", schedule=None):
        Script.partial(task_id="mapped", runtime_env={"requirements": ["x"]}).expand(script=["a"])
    with pytest.raises(ValueError, match="^Task daily: entrypoint is empty"):
        Renamed(task_id="daily", entrypoint="")


def test_subclass_may_set_arguments_later():
    """The constructor checks what it was given, and not what a subclass sets afterwards."""

    class Training(RayJobSubmitOperator):
        template_fields = (*RayJobSubmitOperator.template_fields, "model")

        def __init__(self, *, model: str, **kwargs: Any) -> None:
            super().__init__(entrypoint="true", **kwargs)
            self.model = model
            self.entrypoint = ["python", "train.py", model]

    assert Training(task_id="daily", model="large").entrypoint[-1] == "large"


@contextmanager
def recording(events: list[str]) -> Iterator[None]:
    """Record what the interpreter opens, lists, starts and connects to."""
    is_on = True

    def hook(event: str, _arguments: Any) -> None:
        if is_on and event.partition(".")[0] in ("open", "os", "socket", "subprocess", "import"):
            events.append(event)

    sys.addaudithook(hook)  # there is no way to remove it
    try:
        yield
    finally:
        is_on = False


def test_parsing_touches_neither_disk_nor_network():
    """The second operator of a process opens no file and no socket, and imports nothing."""
    events: list[str] = []
    arguments: dict[str, Any] = {
        "entrypoint": "python train.py",
        "runtime_env": {"working_dir": "./training", "pip": "requirements.txt", "env_vars": {"A": "b"}},
        "entrypoint_memory": "2GB",
        "metadata": {"team": "a"},
        "fetch_logs": "never",
    }
    RayJobSubmitOperator(task_id="first", **arguments)

    with recording(events):
        RayJobSubmitOperator(task_id="second", **arguments)
    assert events == []
