"""
Render templates of text as text, also under native rendering.

With ``render_template_as_native_obj`` Airflow evaluates a rendered text as a Python literal, and the text is lost: the
git SHA ``5e12345`` becomes infinity, ``1_000`` becomes 1000, and JSON becomes a dictionary. Arguments that are text for
Ray or Airflow are rendered without that. A template that is a single expression still has the value of that
expression, such as a list of arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jinja2
    from airflow.sdk import BaseOperator, Context

    _Base = BaseOperator
else:
    _Base = object


class TextTemplate(str):
    """A template that renders to text."""

    __slots__ = ()


class RendersText(_Base):
    """Mixin of operators and sensors: renders the arguments that are text as text."""

    def _do_render_template_fields(
        self,
        parent: Any,
        template_fields: Iterable[str],
        context: Context,
        jinja_env: jinja2.Environment,
        seen_oids: set[int],
    ) -> None:
        """Render the fields. Airflow calls this method for mapped tasks, too."""
        if parent is self:
            # Marked first: Airflow renders the parts of an argument without its name.
            for field in template_fields:
                if mark := _MARKS.get(field):
                    setattr(self, field, mark(getattr(self, field), seen_oids))
        super()._do_render_template_fields(parent, template_fields, context, jinja_env, seen_oids)

    def render_template(
        self,
        content: Any,
        context: Context,
        jinja_env: jinja2.Environment | None = None,
        seen_oids: set[int] | None = None,
    ) -> Any:
        """Render a template or a collection of them."""
        if isinstance(content, TextTemplate):
            return _render_text(content, context, jinja_env or self.get_template_env())
        return super().render_template(content, context, jinja_env, seen_oids)


def _render_text(template: str, context: Mapping[str, Any], jinja_env: jinja2.Environment) -> Any:
    """Return the rendered text. A template that is a single expression has the expression's value."""
    parts = list(jinja_env.from_string(str(template)).generate(context))
    if len(parts) == 1 and not isinstance(parts[0], str):
        return parts[0]
    return "".join(map(str, parts))


# In the following functions ``rendered`` has the ids of values that Airflow does not render: they come from another
# task, and may look like templates.


def _mark_text(value: Any, rendered: Collection[int]) -> Any:
    """Mark the template of a text, or the templates in a list."""
    if not value or id(value) in rendered:
        return value
    if isinstance(value, list | tuple):
        return [_mark_text(each, rendered) for each in value]
    return TextTemplate(value) if isinstance(value, str) else value


def _mark_text_dict(value: Any, rendered: Collection[int]) -> Any:
    """Mark the templates in the values of a dictionary. A template of the whole dictionary is not one of a text."""
    if not isinstance(value, dict) or id(value) in rendered:
        return value
    return {key: _mark_text(each, rendered) for key, each in value.items()}


def _mark_runtime_env(value: Any, rendered: Collection[int]) -> Any:
    """Mark the templates of text in a runtime environment: in ``env_vars``, in lists, and in keys that are text."""
    if not isinstance(value, dict) or id(value) in rendered:
        return value
    marks = {"env_vars": _mark_text_dict, "working_dir": _mark_text, "image_uri": _mark_text}
    lists = {key: _mark_text for key, each in value.items() if isinstance(each, list | tuple)}
    return value | {key: mark(value[key], rendered) for key, mark in (lists | marks).items() if key in value}


_MARKS: Mapping[str, Callable[[Any, Collection[int]], Any]] = {
    **dict.fromkeys(("entrypoint", "ray_conn_id", "submission_id", "job_name", "package_storage"), _mark_text),
    **dict.fromkeys(("metadata", "entrypoint_label_selector"), _mark_text_dict),
    "runtime_env": _mark_runtime_env,
}
