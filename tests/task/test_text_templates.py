"""Templates of text under native rendering, with Airflow's own rendering."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import jinja2
import pytest
from airflow.sdk import DAG, BaseOperator
from hypothesis import example, given, settings
from hypothesis import strategies as st

from airflow_provider_rayjobs.operators import RayJobDeleteOperator, RayJobStopOperator, RayJobSubmitOperator
from airflow_provider_rayjobs.sensors import RayJobSensor
from airflow_provider_rayjobs.task import template_values

# Texts that native rendering changes: numbers, flags, quotes, collections, white space.
CHANGED = (
    "5e12345", "1_000", "1.10", "0x1F", "0b1", "1e5", "1j", "True", "None", "...", "'quoted'", "b'bytes'", "[1,2]",
    "1,2", '{"a": 1}', '["echo",1]', "( 1 )", " 7", "7 ", "",
)  # fmt: skip
# How a template shows a variable: alone, behind a statement, and as two parts.
TEMPLATES = ("{{ v }}", "{% set w = v %}{{ w }}", "{{ v[:2] }}{{ v[2:] }}")


def render(make: Callable[[], BaseOperator], *, native: bool = True, **context: Any) -> Any:
    """Return an operator with arguments that Airflow rendered."""
    with DAG("a", render_template_as_native_obj=native):
        task = make()
    task.render_template_fields(context)
    return task


def submit(**arguments: Any) -> Callable[[], BaseOperator]:
    return lambda: RayJobSubmitOperator(**({"task_id": "b", "entrypoint": "true"} | arguments))


@pytest.mark.parametrize("native", [True, False], ids=["native", "text"])
@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("text", CHANGED)
def test_text_arguments_keep_what_was_written(text: str, template: str, native: bool):
    """Every argument that is text has the text of its template, whatever Python would read into it."""
    task = render(
        submit(
            entrypoint=template,
            ray_conn_id=template,
            submission_id=template,
            job_name=template,
            package_storage=template,
            metadata={"a": template},
            entrypoint_label_selector={"a": template},
            runtime_env={
                "env_vars": {"A": template}, "working_dir": template, "image_uri": template, "py_modules": [template],
                "pip": ["a", template],
            },
        ),
        native=native,
        v=text,
    )  # fmt: skip

    assert {
        task.entrypoint, task.ray_conn_id, task.submission_id, task.job_name, task.package_storage, task.metadata["a"],
        task.entrypoint_label_selector["a"], task.runtime_env["env_vars"]["A"], task.runtime_env["working_dir"],
        task.runtime_env["image_uri"], task.runtime_env["py_modules"][0], task.runtime_env["pip"][1],
    } == {text}  # fmt: skip
    assert type(task.entrypoint) is str
    assert template_values.as_runtime_env(task.runtime_env, [])["env_vars"] == {"A": text}
    assert template_values.as_text_dict("metadata", task.metadata) == {"a": text}


@settings(deadline=None)
@given(text=st.text())
@example("5e12345")
def test_any_text_is_kept(text: str):
    """There is no text that native rendering changes."""
    task = render(submit(entrypoint=["echo", "{{ v }}"], metadata={"a": "{{ v }}"}), v=text)

    assert template_values.as_entrypoint(task.entrypoint) == ["echo", text]
    assert task.metadata == {"a": text}


@pytest.mark.parametrize(
    "make",
    [
        lambda **arguments: RayJobStopOperator(task_id="b", **arguments),
        lambda **arguments: RayJobDeleteOperator(task_id="b", **arguments),
        lambda **arguments: RayJobSensor(task_id="b", **arguments),
    ],
)
def test_other_operators_keep_the_submission_id(make: Callable[..., BaseOperator]):
    """The operators for an existing job, and the sensor, keep id and connection as well."""
    task = render(lambda: make(submission_id="{{ v }}", ray_conn_id="{{ v }}"), v="1_000")

    assert (task.submission_id, task.ray_conn_id) == ("1_000", "1_000")


def test_expression_keeps_its_value():
    """A template of one expression has its value: a list of arguments, a dictionary, a number."""
    values = {
        "arguments": ["echo", 20260102],
        "env_vars": {"A": "1_000"},
        "packages": ["a"],
        "day": 20260102,
        "cpus": 0.5,
    }
    task = render(
        submit(
            entrypoint="{{ arguments }}",
            runtime_env={"env_vars": "{{ env_vars }}", "pip": "{{ packages }}", "config": {"timeout": "{{ day }}"}},
            metadata={"day": "{{ day }}"},
            entrypoint_num_cpus="{{ cpus }}",
            entrypoint_resources="{{ {'A': cpus} }}",
        ),
        **values,
    )

    assert template_values.as_entrypoint(task.entrypoint) == ["echo", "20260102"]
    assert task.runtime_env == {"env_vars": {"A": "1_000"}, "pip": ["a"], "config": {"timeout": 20260102}}
    assert template_values.as_text_dict("metadata", task.metadata) == {"day": "20260102"}
    assert (task.entrypoint_num_cpus, task.entrypoint_resources) == (0.5, {"A": 0.5})


def test_dictionary_written_as_a_template_is_still_a_dictionary():
    """A template whose text is a dictionary renders to that dictionary, for arguments that are one."""
    task = render(submit(metadata="{'sha': '{{ v }}'}", runtime_env="{'env_vars': {'SHA': '{{ v }}'}}"), v="5e12345")

    assert task.metadata == {"sha": "5e12345"}
    assert task.runtime_env == {"env_vars": {"SHA": "5e12345"}}


def test_number_that_has_lost_its_text_is_refused():
    """Infinity is no text: it was a git SHA in the literal of a dictionary."""
    task = render(submit(metadata="{'sha': {{ v }}}"), v="5e12345")

    with pytest.raises(
        ValueError, match=r"^metadata\['sha'\] must be text, not the number inf\. Write the text in quo"
    ):
        template_values.as_text_dict("metadata", task.metadata)


def test_macros_filters_and_undefined_names_work_as_elsewhere():
    """Text is rendered with the environment of the DAG: its macros, filters and rule for undefined names."""
    with DAG(
        "a", render_template_as_native_obj=True, user_defined_macros={"m": "5e1"}, user_defined_filters={"f": str.upper}
    ):
        task, wrong = submit(job_name="{{ m | f }}")(), submit(job_name="a {{ unknown }}", task_id="c")()
    task.render_template_fields({})

    assert task.job_name == "5E1"
    with pytest.raises(jinja2.UndefinedError, match="unknown"):
        wrong.render_template_fields({})


def unmapped(arguments: dict[str, Any], rendered: set[int], **context: Any) -> Any:
    """Return a task as ``.expand()`` makes it. Airflow does not render values with these ids."""
    with DAG("a", render_template_as_native_obj=True):
        mapped = RayJobSubmitOperator.partial(task_id="b", job_name="{{ v }}").expand_kwargs([arguments])
    task = mapped.unmap(arguments)
    task._do_render_template_fields(
        parent=task, template_fields=mapped.template_fields, context=context, jinja_env=task.get_template_env(),
        seen_oids=rendered,
    )  # fmt: skip
    return task


def test_mapped_task_keeps_text():
    """A task made by ``.expand()`` keeps what was written, in its mapped and in its other arguments."""
    task = unmapped({"entrypoint": "{{ v }}", "metadata": {"a": "{{ v }}"}}, set(), v="1_000")

    assert (task.entrypoint, task.metadata, task.job_name) == ("1_000", {"a": "1_000"}, "1_000")


def test_values_of_other_tasks_are_not_rendered():
    """A mapped value that another task returned is data and is not rendered, even if it looks like a template."""
    values: dict[str, Any] = {
        "entrypoint": "echo {{ v }}",
        "metadata": {"a": "{{ v }}"},
        "runtime_env": {"env_vars": {"A": "{{ v }}"}, "pip": ["{{ v }}"]},
    }
    task = unmapped(values, {id(value) for value in values.values()}, v="rendered")

    assert (task.entrypoint, task.metadata) == (values["entrypoint"], values["metadata"])
    assert task.runtime_env == values["runtime_env"]
    assert task.job_name == "rendered"


def test_results_of_other_tasks_are_kept():
    """A text that another task returned is the same text in an argument, nested or not."""

    class Result:
        """A reference to the result of another task, which Airflow resolves."""

        def resolve(self, _context: Any) -> str:
            return "5e12345"

    task = render(submit(entrypoint=["echo", Result()], metadata={"sha": Result()}, job_name="a"))
    task.submission_id = Result()
    task.render_template_fields({})

    assert (task.entrypoint, task.metadata, task.submission_id) == (["echo", "5e12345"], {"sha": "5e12345"}, "5e12345")


def test_other_types_are_left_to_the_checks_of_execute():
    """Values that are no text, list or dictionary are not changed."""
    runtime_env = MappingProxyType({"env_vars": {"A": "{{ v }}"}})
    task = render(submit(runtime_env=runtime_env, metadata=None, job_name=7, entrypoint=("echo", "{{ v }}")), v="1_0")

    assert dict(task.runtime_env) == dict(runtime_env)
    assert (task.metadata, task.job_name, list(task.entrypoint)) == (None, 7, ["echo", "1_0"])


def test_json_stays_json():
    """JSON in a variable of the job is not evaluated, so that the job can parse it."""
    task = render(submit(runtime_env={"env_vars": {"CONFIG": "{{ v | tojson }}"}}), v={"a": [True, None]})

    assert json.loads(template_values.as_runtime_env(task.runtime_env, [])["env_vars"]["CONFIG"]) == {"a": [True, None]}
