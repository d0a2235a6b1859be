"""The source of functions: which of them can be sent, and that they do on the cluster what they do here."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from function_runs import Decorated, load, run

from airflow_provider_rayjobs.functions.source import extract_source


def test_function_returns_what_it_returns_here(tmp_path: Path):
    """A function with defaults, keyword-only arguments and nested functions gets its arguments and returns a value."""
    module = load(
        tmp_path,
        '''
        import json
        import os.path as paths
        from collections import Counter, OrderedDict as Ordered

        LIMIT = 3

        @on_ray
        def count(words, /, least=1, *others, sep: str = ", ", **options):
            """Count words."""
            def line(word: str) -> str:
                return f"{word} {counts[word]}"
            class Box:
                value: int = 7
            counts = Counter(words)
            text = """
        less indented
            than the function"""
            found = [line(word) for word in sorted(counts) if counts[word] >= least]
            values = [sep.join(found), others, options, Box.value, text]
            return [*values, paths.join("a", "b"), json.loads("[1]"), count.__doc__]
        ''',
    )
    ended = run(module.count, tmp_path, [["b", "a", "b"], 1, 8, 9], {"sep": "; ", "x": None})

    assert ended.exit_code == 0, ended.shown
    assert ended.value == [
        "a 1; b 2", [8, 9], {"x": None}, 7, "\nless indented\n    than the function", "a/b", [1], "Count words."
    ]  # fmt: skip
    assert ended.shown == ""
    assert ended.messages.results == 1


def test_only_the_function_and_its_imports_are_sent(tmp_path: Path):
    """The rest of the file stays on the worker, with its secrets, and the lines keep their numbers."""
    module = load(
        tmp_path,
        """
        import json, math; KEY = "hunter1"
        import secrets
        PASSWORD = "hunter2"

        @on_ray
        def area(radius):
            return math.pi * radius

        OTHER = 1
        """,
    )

    lines = module.area.source.text.split("\n")
    assert lines == ["", "import math", "", "", "", "", "def area(radius):", "    return math.pi * radius"]


@pytest.mark.parametrize(
    "text",
    [
        "@on_ray\ndef f(x): return x + 1",
        "@on_ray()\ndef f(x): return x + 1",
        "@on_ray(\n    a=1,\n    # comment\n    b={\n        'c': 2,\n    },\n)\n# more\n\ndef f(x):\n    return x + 1",
        "alias = on_ray(a=1)\n@alias\ndef f(x):\n    return x + 1",
        "class Task: pass\ntask = Task()\ntask.ray_job = on_ray\n@task.ray_job(a=1)\ndef f(x):\n    return x + 1",
        "def wrapper(function):\n    return on_ray(a=1)(function)\n@wrapper\ndef f(x):\n    return x + 1",
        "@(\n    on_ray\n)\ndef f(x):\n    return x + 1",
        "outer = lambda task: task\n@outer\n@outer\n@on_ray\ndef f(x):\n    return x + 1",
        "def f(x):\n    return x + 1\nf = on_ray(f)",
        "def g(x):\n    return x + 1\ng.__name__ = 'h'\nf = on_ray(g)",
        "def dag():\n    alias = on_ray\n    @alias\n    def f(x):\n        return x + 1\n    return f\nf = dag()",
        "def dag():\n\talias = on_ray\n\t@alias\n\tdef f(x):\n\t\treturn x + 1\n\treturn f\nf = dag()",
        "if True:\n    with open(__file__):\n        @on_ray\n        def f(x):\n            return x + 1",
        "@on_ray\nasync def f(x):\n    import asyncio\n    await asyncio.sleep(0)\n    return x + 1",
    ],
)
def test_decorators_of_the_task_are_removed(tmp_path: Path, text: str):
    """The decorator of the task is removed under any name and in any layout, with those above it."""
    ended = run(load(tmp_path, text).f, tmp_path, [1])

    assert ended.value == 2


def test_decorators_below_that_of_the_task_are_kept(tmp_path: Path):
    """A decorator of the function itself, and what it imports, goes to the cluster."""
    module = load(
        tmp_path,
        """
        import functools

        def outer(task):
            return task

        @outer
        @on_ray(
            a=1,
        )
        @functools.lru_cache(
            maxsize=3,
        )
        def f(x):
            f.cache_info()
            return f.cache_parameters()["maxsize"]
        """,
    )

    assert run(module.f, tmp_path, [1]).value == 3


def test_imports_around_a_function(tmp_path: Path):
    """Imports of the function around it, and alternatives in a ``try``, are sent with it."""
    module = load(
        tmp_path,
        """
        try:
            import no_such_module as parser
        except ImportError:
            import json as parser
        import json

        def dag():
            import math as json
            @on_ray
            def f(x):
                return [json.floor(x), parser.loads("1")]
            return f

        f = dag()
        """,
    )

    assert run(module.f, tmp_path, [1.5]).value == [1, 1]


RETURNS_NAME = "@on_ray\ndef f():\n    return it.__name__\n"


@pytest.mark.parametrize(
    "text",
    [
        "import xml.dom\nimport xml.sax\n@on_ray\ndef f():\n    return [xml.dom.__name__, xml.sax.__name__]",
        "import sys\nif sys.version_info >= (3, 8):\n    import json as it\nelse:\n    import nowhere as it\n"
        + RETURNS_NAME,
        "import typing\nif not typing.TYPE_CHECKING:\n    import json as it\nelse:\n    import nowhere as it\n"
        + RETURNS_NAME,
        "import logging\ntry:\n    import nowhere as it\nexcept ImportError:\n    it = logging\n" + RETURNS_NAME,
        "try:\n    from math import nowhere as it\nexcept ImportError:\n    def it(x): return x\n" + RETURNS_NAME,
        "import math; import json as it; import os as it\n" + RETURNS_NAME,
        RETURNS_NAME + "import json as it\nif __name__ == '__main__':\n    import nowhere as it\n    f.function.test()",
        "try:\n    import json\n    @on_ray\n    def f():\n        return json.dumps(1)\nfinally:\n    pass",
        "if 0:\n    import no as it\nelif 1:\n    import json as it\n    @on_ray\n    def f():\n        return str(it)",
        "try:\n    from .no import it\nexcept ImportError:\n    import json as it\n" + RETURNS_NAME,
    ],
)
def test_imports_mean_what_they_mean_here(tmp_path: Path, text: str):
    """All imports of a name are sent, one in a ``try`` or ``if`` with all of it, and with the imports that it needs."""
    f = load(tmp_path, text).f
    ended = run(f, tmp_path)

    assert ended.exit_code == 0, ended.shown
    assert ended.value == f.function()


@pytest.mark.parametrize("future", ["from __future__ import annotations", ""])
def test_type_hints_for_type_checkers(tmp_path: Path, future: str):
    """A hint may name what exists only under ``TYPE_CHECKING``, and what the cluster does not have."""
    quote = "" if future else '"'
    module = load(
        tmp_path,
        f"""
        {future}
        import typing
        from typing import TYPE_CHECKING, Any

        if TYPE_CHECKING:
            from nowhere import Row
            import never
        else:
            import math

        Rows = list

        @on_ray
        def f(rows: {quote}list[Row]{quote}, *more: Rows, key: typing.Optional[int] = None) -> {quote}Row{quote}:
            first: Row = rows[0]
            class Box:
                value: Any = first
            return math.floor(Box.value)
        """,
    )

    assert run(module.f, tmp_path, [[1.5]]).value == 1
    assert "import typing" not in module.f.source.text


def test_annotations_of_classes_inside_a_function(tmp_path: Path):
    """Postponed annotations of a class are resolved by Pydantic, so their imports are sent."""
    module = load(
        tmp_path,
        """
        from __future__ import annotations
        import typing
        from typing import TYPE_CHECKING, Optional

        if TYPE_CHECKING:
            from nowhere import Row

        @on_ray
        def f(rows: Row):
            class Box:
                value: Optional[int]
                def method(self, row: Row) -> Row: ...
            return str(typing.get_type_hints(Box)["value"])
        """,
    )

    assert run(module.f, tmp_path, [1]).value == "typing.Optional[int]"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("f = on_ray(lambda x: x)", "@task.ray_job does not support a lambda. Define a function with a name."),
        ("@on_ray\ndef f(x):\n    yield x", "@task.ray_job does not support yield in f. Return a list."),
        ("@on_ray\nasync def f(x):\n    yield x", "@task.ray_job does not support yield in f. Return a list."),
        ("class A:\n    @on_ray\n    def f(x):\n        return x", "does not support methods. Define f outside"),
        ("class A:\n    @on_ray\n    @staticmethod\n    def f(x):\n        return x", "does not support methods."),
        ("class A:\n    def f(self):\n        return 1\nf = on_ray(A().f)", "does not support methods."),
        ("from functools import partial\nf = on_ray(partial(int, base=2))", "this is a functools.partial. Define a"),
        ("f = on_ray(len)", "@task.ray_job needs a function, and this is builtin_function_or_method."),
        ("class A:\n    def __call__(self):\n        return 1\nf = on_ray(A())", "needs a function, and this is A."),
    ],
)
def test_what_is_not_a_function_is_an_error(tmp_path: Path, text: str, error: str):
    """A lambda, a method, a generator or another object is an error while the DAG is parsed."""
    with pytest.raises(TypeError) as raised:
        load(tmp_path, text)

    assert error in str(raised.value)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("LIMIT = 3\n@on_ray\ndef f():\n    return LIMIT", "uses LIMIT, which it does not define."),
        ("@on_ray\ndef f():\n    return later()\ndef later():\n    return 1", "uses later, which it does not define."),
        ("def g():\n    pass\n@on_ray\ndef f(x=g):\n    return x", "uses g, which it does not define."),
        ("from os.path import *\n@on_ray\ndef f():\n    return join('a')", "uses join, which it does not define."),
        ("@on_ray\ndef f():\n    return __file__", "uses __file__, which it does not define."),
        ("def dag(limit):\n    @on_ray\n    def f():\n        return limit\ndag(3)", "uses limit, which it does not"),
        ("A = B = 1\n@on_ray\ndef f():\n    return [lambda: A, [B for _ in 'x']]", "uses A, B, which it does not"),
        (
            "from os import environ as it\nit = {}\n@on_ray\ndef f():\n    return it",
            "uses it, which it does not define.",
        ),
        (
            "A = 1\nif A:\n    import json\n@on_ray\ndef f():\n    return json",
            "uses A (in the try or if of an import), which",
        ),
        (
            "if 0:\n    from . import helper\n@on_ray\ndef f():\n    return helper",
            "uses helper, which a relative import",
        ),
    ],
)
def test_what_is_defined_outside_of_the_function_is_an_error(tmp_path: Path, text: str, names: str):
    """A function that uses other parts of its file fails while the DAG is parsed, and not on the cluster."""
    with pytest.raises(ValueError, match="@task.ray_job sends the function to the cluster with") as raised:
        load(tmp_path, text)

    assert names in str(raised.value)
    assert f"({tmp_path / 'dag_file.py'}, line " in str(raised.value)


@pytest.mark.parametrize(
    "text", ["@lambda f: on_ray(wrap(f))\ndef f():\n    pass", "def f():\n    pass\non_ray(wrap(f))"]
)
def test_wrapper_without_source_is_an_error(tmp_path: Path, text: str):
    """A wrapper that is no decorator below the task's would be lost, so it is an error while the DAG is parsed."""
    wrap = "import functools\ndef wrap(f):\n    return functools.wraps(f)(lambda: f() + 1)\n"

    with pytest.raises(
        ValueError, match=r"^f \(.*, line 4\) is wrapped by a decorator that does not stand between @task"
    ):
        load(tmp_path, wrap + text)


def test_function_without_source_is_an_error(tmp_path: Path):
    """A function that was defined with exec(), or whose file has changed, is an error that says so."""
    names: dict[str, Decorated] = {}
    exec("def f(x):\n    return x", names)  # noqa: S102
    module = load(tmp_path, "\n\ndef f(x):\n    return x\nplain = f")
    (tmp_path / "dag_file.py").write_text("def other():\n    pass\n")

    for function in (names["f"], module.plain):
        with pytest.raises(ValueError, match="cannot find the source of f: .* Functions of notebooks, exec\\(\\) and"):
            extract_source(function, "@task.ray_job")


def test_file_that_changes_between_two_imports(tmp_path: Path):
    """A process that imports a changed DAG file sends the new source."""
    old = load(tmp_path, "@on_ray\ndef f(x):\n    return x + 1")
    new = load(tmp_path, "@on_ray\ndef f(x):\n    return x + 1000")

    assert [run(module.f, tmp_path, [1]).value for module in (old, new)] == [2, 1001]


def test_names_that_every_module_has(tmp_path: Path):
    """Builtins, ``__name__`` and the function's own name need no import."""
    module = load(tmp_path, "@on_ray\ndef f(n):\n    return [__name__, n] if n == 0 else f(n - 1) + [len('x')]")

    assert run(module.f, tmp_path, [1]).value == ["__main__", 0, 1]


OTHER_PYTHONS = [
    path
    for version in ("3.8", "3.9", "3.10", "3.12", "3.13")
    for path in sorted(Path("~/.pyenv/versions").expanduser().glob(f"{version}.*/bin/python"))
    if sys.version_info[:2] != tuple(map(int, version.split(".")))
]


@pytest.mark.parametrize("python", OTHER_PYTHONS, ids=lambda path: path.parents[1].name)
def test_another_python_on_the_cluster(tmp_path: Path, python: Path):
    """The cluster may have another minor version of Python than the worker."""
    module = load(
        tmp_path,
        """
        import sys
        from typing import Any

        @on_ray
        def f(rows: list[dict[str, Any]] | None, *, scale: float = 2.0) -> dict[str, Any]:
            class Box:
                value = [row["x"] * scale for row in rows]
            return {"python": list(sys.version_info[:2]), "values": Box.value}
        """,
    )
    ended = run(module.f, tmp_path, [[{"x": 1.5}]], python=str(python))

    version = [int(part) for part in python.parents[1].name.split(".")[:2]]
    assert ended.value == {"python": version, "values": [3.0]}
