"""``@task.ray_job``: its options, and what Airflow makes of it. test_functions_on_ray.py runs it."""

from __future__ import annotations

import calendar
import copy
import inspect
import json
import subprocess
import sys
from datetime import datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG, BaseOperator, setup, task, task_group, teardown
from test_operators import context

from airflow_provider_rayjobs.decorators import ray_job
from airflow_provider_rayjobs.functions.options import FunctionOptions, TaskOptions
from airflow_provider_rayjobs.functions.package import MODULE
from airflow_provider_rayjobs.operators import RayJobSubmitOperator

ROOT = Path(__file__).parents[1]


@pytest.fixture
def dag():
    with DAG("functions", schedule=None) as dag:
        yield dag


def call_of(operator: Any, **more: Any) -> dict[str, Any]:
    """Return the file that describes the call to the program on the cluster."""
    return json.loads(operator.generated_module(context() | more).files[f"{MODULE}/call.json"])


def test_airflow_finds_the_decorator(dag: DAG):
    """The decorator is registered as ``@task.ray_job``."""

    @task.ray_job
    def train():
        """Train a model."""

    operator = train().operator

    assert isinstance(operator, RayJobSubmitOperator)
    assert operator.task_id == "train"
    assert operator.doc_md == "Train a model."
    assert operator.entrypoint == ["python", "-m", "ray_job_function", "train"]
    assert operator.operator_name == "@task.ray_job"


def test_options_for_type_checkers_are_those_of_the_operator():
    """The typed options are the arguments of the operator, with its types, and those of every operator of Airflow."""
    own = FunctionOptions.__annotations__.keys() - TaskOptions.__annotations__.keys()
    ours = inspect.signature(RayJobSubmitOperator.__init__).parameters.copy()
    del ours["self"], ours["kwargs"]
    airflows = inspect.signature(BaseOperator.__init__).parameters.keys() - {"self", "kwargs"}

    assert own == ours.keys() - {"entrypoint", "return_result"} | {"serializer", "result_serializer"}
    options = {name: FunctionOptions.__annotations__[name].__forward_arg__ for name in own & ours.keys()}
    assert options == {name: ours[name].annotation for name in options}
    assert airflows - TaskOptions.__annotations__.keys() <= {"sla", "multiple_outputs"}


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"entrypoint_num_cpu": 1}, "has no option 'entrypoint_num_cpu'. Did you mean 'entrypoint_num_cpus'?"),
        ({"num_gpus": 1}, "has no option 'num_gpus'. Did you mean 'entrypoint_num_gpus'?"),
        ({"zzz": 1}, "has no option 'zzz'."),
        ({"entrypoint": "true"}, "has no entrypoint: it runs the function. For a command use RayJobSubmitOperator."),
        ({"return_result": True}, "has no return_result: the return value of the function is the result. Remove it."),
        ({"serializer": "dill"}, "serializer must be one of json, cloudpickle, not 'dill'."),
        ({"result_serializer": "pickle"}, "result_serializer must be one of json, cloudpickle, not 'pickle'."),
        ({"entrypoint_num_cpus": "two"}, "@task.ray_job: entrypoint_num_cpus must be a number, not 'two'."),
        ({"runtime_env": {"pips": []}}, "@task.ray_job: runtime_env has the unknown key 'pips' .did you mean 'pip'"),
        ({"fetch_logs": "liev"}, "@task.ray_job: fetch_logs must be one of live, on_completion, never, not 'liev'."),
    ],
)
def test_unknown_option_is_an_error_of_the_dag_file(options: dict[str, Any], error: str):
    """An unknown option, or a value that cannot work, is an error where the decorator or ``override`` stands."""

    @task.ray_job
    def train():
        return 1

    for decorate in (task.ray_job, train.override):
        with pytest.raises((TypeError, ValueError), match=error):
            decorate(**options)


def test_wrong_arguments_are_an_error_of_the_dag_file(dag: DAG):
    """A call that does not fit the function is an error while the DAG is parsed."""

    @task.ray_job
    def train(rows: list[Any], *, alpha: float = 0.1):
        return rows, alpha

    with pytest.raises(TypeError, match="missing a required argument: 'rows'"):
        train()
    with pytest.raises(TypeError, match="unexpected keyword argument 'beta'"):
        train([], beta=1)


def test_override_and_default_args(dag: DAG):
    """``override`` and the ``default_args`` of the DAG set the options of the operator."""
    with DAG("defaults", schedule=None, default_args={"ray_conn_id": "ray_team", "retries": 3}):

        @task.ray_job(poll_interval=7)
        def train():
            return 1

        first, second = train().operator, train.override(task_id="other", poll_interval=8)().operator

    assert (first.ray_conn_id, first.retries, first.poll_interval) == ("ray_team", 3, 7)
    assert (second.ray_conn_id, second.task_id, second.poll_interval) == ("ray_team", "other", 8)


def test_stacked_with_airflows_own_decorators(dag: DAG):
    """Setup, teardown, conditions and task groups work as with every task."""

    @task_group
    def group():
        @setup
        @task.ray_job
        def start():
            return 1

        @teardown
        @task.skip_if(lambda context: False)
        @task.ray_job(poll_interval=3)
        def stop(value: int):
            return value + 1

        return start() >> stop(1)

    group()
    start, stop = dag.get_task("group.start"), dag.get_task("group.stop")

    assert start.is_setup
    assert stop.is_teardown
    source = call_of(stop)["source"]
    assert source.strip().splitlines() == ["def stop(value: int):", "            return value + 1"]
    assert call_of(stop)["args"] == [1]


@pytest.mark.parametrize("decorate", [task, setup, task.ray_job])
def test_task_cannot_be_decorated_again(decorate: Any):
    """The decorator above another one of Airflow is an error that says so."""

    def train():
        return 1

    with pytest.raises(TypeError, match="^@task.ray_job needs a function, and train is a task. Remove one of its dec"):
        task.ray_job(decorate(train))


def test_teardown_that_fails_its_dag_run(dag: DAG):
    """The option that only teardowns of TaskFlow have is accepted by the decorator and by ``override``."""

    def stop():
        return 1

    first = teardown(task.ray_job(on_failure_fail_dagrun=True)(stop))
    second = teardown(task.ray_job(stop)).override(task_id="second", on_failure_fail_dagrun=True)

    assert all(each().operator.on_failure_fail_dagrun for each in (first, second))


def test_mapped_over_its_arguments(dag: DAG):
    """``partial``, ``expand`` and ``expand_kwargs`` map over the arguments of the function."""

    @task.ray_job(retries=2)
    def train(rows, alpha=0.1):
        return rows, alpha

    mapped = train.partial(rows=[1]).expand(alpha=[0.1, 0.2]).operator
    one = mapped.unmap({"op_kwargs": {"alpha": 0.2}})

    assert one.retries == 2
    assert call_of(one)["kwargs"] == {"rows": [1], "alpha": 0.2}
    assert train.expand_kwargs([{"rows": [], "alpha": 1}]).operator.operator_class is type(one)
    with pytest.raises(TypeError, match="unexpected keyword argument 'beta'"):
        train.expand(beta=[1])


def test_values_of_the_context_are_arguments(dag: DAG):
    """A parameter with the name of a key of the context gets its value, unless it is given."""

    @task.ray_job
    def train(ds, run_id=None, *, params=None, **options):
        return ds

    call = call_of(train(run_id="mine", x=1).operator, ds="2026-01-02", run_id="theirs", params={"a": 1}, ti=object())

    assert call["kwargs"] == {"run_id": "mine", "x": 1, "ds": "2026-01-02", "params": {"a": 1}}


def test_key_that_the_context_does_not_have(dag: DAG):
    """A manual run may have no ``ds``. The error says so."""

    @task.ray_job
    def train(ds):
        return ds

    with pytest.raises(ValueError, match="^train: missing a required argument: 'ds'. A run without a logical date has"):
        call_of(train().operator)


def test_value_of_the_context_that_is_not_json(dag: DAG):
    """The error does not advise to convert the task instance, but to pass its parts."""

    @task.ray_job
    def train(ti=None):
        return ti

    with pytest.raises(ValueError, match=r"^train: ti is Airflow's datetime.datetime, which .* '{{ ti.try_number }}'"):
        call_of(train().operator, ti=datetime(2026, 1, 2))  # noqa: DTZ001


def test_argument_that_is_not_json(dag: DAG):
    """The error names the function, the argument, the place in it, its type, and what to do."""

    @task.ray_job
    def train(rows, logical_date):
        return rows

    operator = train([{"day": datetime(2026, 1, 2)}]).operator  # noqa: DTZ001

    with pytest.raises(
        ValueError, match=r'^train: argument rows\[0\]\["day"\] is of type datetime.datetime, which JSON'
    ):
        call_of(operator, logical_date="x")


def test_same_call_has_the_same_package(dag: DAG):
    """The files depend on the function and its arguments alone, so that a retry finds its package on the cluster."""

    @task.ray_job
    def train(rows):
        return rows

    first, second, other = (train(rows).operator for rows in ([1], [1], [2]))
    files = [each.generated_module(context()).files for each in (first, second, copy.deepcopy(first), other)]

    assert files[0] == files[1] == files[2]
    assert files[0] != files[3]


@pytest.mark.parametrize("is_mapped", [False, True])
def test_options_from_functions(dag: DAG, is_mapped: bool):
    """An option may be a function of the context. What it returns is not rendered again."""

    @task.ray_job(
        runtime_env=lambda context: {"env_vars": {"DAY": context["ds"]}},
        entrypoint_num_cpus=lambda context: 2 * context["ti"].try_number,
        job_name=lambda context: "{{ not a template }}",
        deferrable="{{ ti.try_number > 1 }}",
        metadata={"day": "{{ ds }}"},
    )
    def train(day):
        return day

    values = context(map_index=0) | {"ds": "2026-01-02", "dag": dag}
    values["dag_run"].conf = {}
    operator = (train.expand(day=["{{ ds }}"]) if is_mapped else train("{{ ds }}")).operator
    operator.render_template_fields(values)
    operator = values["task"] if is_mapped else operator
    submission = operator.new_submission(values, "job-1")

    assert operator.settings().deferrable is True
    assert submission.runtime_env["env_vars"]["DAY"] == "2026-01-02"
    assert submission.entrypoint_num_cpus == 4
    assert submission.metadata["job_name"] == "{{ not a template }}"
    assert submission.metadata["day"] == "2026-01-02"
    assert [*call_of(operator)["args"], *call_of(operator)["kwargs"].values()] == ["2026-01-02"]


def test_every_option_may_be_a_template():
    """Each option is rendered, but for those that are known before a template is: ``durable`` and the serializers."""
    own = FunctionOptions.__annotations__.keys() - TaskOptions.__annotations__.keys()
    rendered = set(task.ray_job(calendar.isleap)(1).operator.template_fields)

    assert own - rendered == {"durable", "serializer", "result_serializer"}


def test_result_is_returned_only_by_a_task_that_waits(dag: DAG):
    """A function's task returns its value, and the submission id if it does not wait."""

    @task.ray_job(fail_on_exit_code=3, skip_on_exit_code="4")
    def train():
        return 1

    waits, leaves = train().operator.settings(), train.override(wait_for_completion=False)().operator.settings()

    assert (waits.return_result, waits.may_unpickle) == (True, False)
    assert not leaves.return_result
    defaults = {"return_result": True}
    leaves = train.override(task_id="other", wait_for_completion=False, default_args=defaults)().operator.settings()
    assert not leaves.return_result
    assert (waits.fail_on, waits.skip_on) == ({3, 98}, {4, 99})
    assert train.override(result_serializer="cloudpickle")().operator.settings().may_unpickle


def test_plain_operator_returns_a_result_only_if_it_waits():
    """``return_result`` without waiting is an error."""
    operator = RayJobSubmitOperator(task_id="t", entrypoint="true", return_result=True)
    operator.wait_for_completion = False  # as a template may render

    with pytest.raises(ValueError, match="return_result needs wait_for_completion=True"):
        operator.settings()
    assert RayJobSubmitOperator(task_id="t", entrypoint="true", return_result="true").settings().return_result


def test_dag_can_be_serialized(dag: DAG):
    """Airflow serializes a DAG with functions as tasks and as options, mapped or not."""
    from airflow.serialization import serialized_objects

    # Airflow 3.1 has another name for it
    serialization = getattr(serialized_objects, "DagSerialization", None) or serialized_objects.SerializedDAG

    @task.ray_job(runtime_env=lambda context: {}, execution_timeout=timedelta(hours=1))
    def train(x):
        return x

    train(1)
    train.expand(x=[1, 2])

    text = json.dumps(serialization.to_dict(dag))
    assert "@task.ray_job" in text
    assert " at 0x" not in text


def test_function_of_another_module(dag: DAG):
    """A function may be imported from elsewhere."""
    operator = ray_job(calendar.isleap)(2028).operator

    assert operator.task_id == "isleap"
    assert "def isleap(year):" in call_of(operator)["source"]


OPERATORS = """
from datetime import timedelta

from airflow.sdk import DAG, Context, task

from airflow_provider_rayjobs.decorators import ray_job
from airflow_provider_rayjobs.operators import RayJobSubmitOperator


def entrypoint(context: Context) -> list[str]:
    return ["python", "train.py", context["ds"]]


with DAG("typed"):

    @task
    def cpus() -> int:
        return 2

    RayJobSubmitOperator(
        task_id="train",
        entrypoint=entrypoint,
        runtime_env=lambda context: {"env_vars": {"DAY": context["ds"]}},
        entrypoint_num_cpus=cpus(),
        entrypoint_memory=lambda context: 2**30 * context["ti"].try_number,
        job_timeout=lambda context: timedelta(hours=2),
        fail_on_exit_code=lambda context: [2],
    )
    RayJobSubmitOperator(
        task_id="score", entrypoint="true", entrypoint_memory="2GB", log_lines_limit="{{ params.lines }}"
    )

    @ray_job(entrypoint_num_cpus=cpus(), entrypoint_memory="2GB", log_lines_limit=lambda context: 100)
    def fit() -> None: ...

    fit()
"""
TYPED = """
from airflow_provider_rayjobs.decorators import ray_job


@ray_job(entrypoint_num_cpus=1, runtime_env={"pip": ["x"]}, retries=2, metadata=lambda context: {"day": context["ds"]})
def train(rows: list[int], alpha: float = 0.1) -> float:
    return alpha


@ray_job
def bare(x: int) -> int:
    return x


reveal_type(train.function)
train([1], alpha=0.2)
bare("x")
"""


@pytest.mark.skipif(version("mypy").startswith("1."), reason="mypy 1 has other messages")
def test_type_checkers_know_signature_and_options(tmp_path: Path):
    """mypy accepts right options and arguments, and reports wrong ones."""
    texts = {
        "good": TYPED,
        "unknown": TYPED.replace("entrypoint_num_cpus=1", "entrypoint_num_cpu=1"),
        "wrong": TYPED.replace("retries=2", "retries='two'"),
        "operators": OPERATORS,
        "wrong_operators": OPERATORS.replace('entrypoint_memory="2GB"', 'entrypoint_memory=["2GB"]'),
    }
    outputs = []
    for name, text in texts.items():
        (tmp_path / f"{name}.py").write_text(text)
        command = [sys.executable, "-m", "mypy", "--no-error-summary", "--config-file", "pyproject.toml"]
        ended = subprocess.run(
            [*command, tmp_path / f"{name}.py"], cwd=ROOT, check=False, capture_output=True, text=True, timeout=300
        )
        outputs.append([line.partition(": ")[2] for line in ended.stdout.splitlines()])

    assert outputs[0] == [
        'note: Revealed type is "def (rows: list[int], alpha: float =) -> float"',
        'error: Argument 1 has incompatible type "str"; expected "int"  [arg-type]',
    ]
    assert outputs[1][0].startswith(
        'error: Unexpected keyword argument "entrypoint_num_cpu" for overloaded function "ray_job"; did you mean '
    )
    assert outputs[2][0].startswith('error: No overload variant of "ray_job" matches argument types')
    assert outputs[3] == []
    assert outputs[4][0].startswith('error: Argument "entrypoint_memory" to "RayJobSubmitOperator" has incompatible')
    assert any(line.startswith('error: No overload variant of "ray_job" matches') for line in outputs[4])
