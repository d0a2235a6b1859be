"""
The source of a function, without its file: the function and the imports that it uses.

The lines keep their numbers, so that a traceback from the cluster shows the lines of the user's file. Everything else
in the file is left out: other tasks, and code that needs Airflow.

The decorator of the task, and those above it, are left out as well: they made the task. Those below it are kept, as
they belong to the function.
"""

from __future__ import annotations
import __future__

import ast
import functools
import inspect
import linecache
import re
import symtable
import sys
import types
from collections.abc import Callable, Collection, Iterable, Sequence, Set
from dataclasses import dataclass
from typing import Any

_Definition = ast.FunctionDef | ast.AsyncFunctionDef
_Import = ast.Import | ast.ImportFrom
_BEGINNING = re.compile(r"\s*(@|def\b|async\b)")
# Names that a module has without defining them, and that mean the same on the cluster.
_IN_EVERY_MODULE = ("__name__", "__doc__", "__builtins__")


@dataclass(frozen=True)
class FunctionSource:
    """
    The source of a function.

    :param text: the lines of its file, empty but for those of the statements.
    :param statements: first and last line of each statement; the last statement is the function.
    """

    text: str
    statements: tuple[tuple[int, int], ...]
    future_annotations: bool


def check_function(function: Any, decorator: str) -> types.FunctionType:
    """
    Return the function below all wrappers.

    :raises TypeError: it is not a function, or not one that returns a value.
    """
    if isinstance(function, staticmethod | classmethod) or inspect.ismethod(function):
        raise TypeError(f"{decorator} does not support methods. Define the function outside of the class.")
    found = inspect.unwrap(function)
    if not isinstance(found, types.FunctionType):
        kind = "a functools.partial" if isinstance(found, functools.partial) else type(found).__name__
        raise TypeError(f"{decorator} needs a function, and this is {kind}. Define a function that calls it.")
    if found.__code__.co_name == "<lambda>":
        raise TypeError(f"{decorator} does not support a lambda. Define a function with a name.")
    if inspect.isgeneratorfunction(found) or inspect.isasyncgenfunction(found):
        raise TypeError(f"{decorator} does not support yield in {found.__name__}. Return a list.")
    return found


def extract_source(function: Callable[..., Any], decorator: str) -> FunctionSource:
    """
    Return the source of a function. Call this where the decorator is applied.

    :param decorator: its name for error messages.
    :raises TypeError: this is no function that can run on a cluster.
    :raises ValueError: the source cannot be found, or uses what is defined outside of the function.
    """
    found = check_function(function, decorator)
    code = found.__code__
    filename = code.co_filename
    linecache.checkcache(filename)  # the file may have changed since its last function
    lines = [line.rstrip("\n") for line in linecache.getlines(filename, found.__globals__)]
    tree = _parse("\n".join(lines), filename) if lines else None
    around = _find_definition(tree, found) if tree else None
    if around is None:
        raise ValueError(
            f"{decorator} cannot find the source of {found.__name__}: {filename!r} is no file with it. Functions of "
            "notebooks, exec() and changed files have no source. Define it in a file, or use serializer='cloudpickle'."
        )
    definition: Any = around[-1]
    if isinstance(around[-2], ast.ClassDef):
        raise TypeError(f"{decorator} does not support methods. Define {found.__name__} outside of the class.")
    first, last = _first_line(definition, filename, lines), definition.end_lineno
    if function is not found and first == definition.lineno:
        raise ValueError(
            f"{found.__name__} ({filename}, line {code.co_firstlineno}) is wrapped by a decorator that does not stand "
            f"between {decorator} and the function, so it cannot be sent. Write it there, or use "
            "serializer='cloudpickle'."
        )
    annotations = bool(code.co_flags & __future__.annotations.compiler_flag)
    names = _names_used(lines[first - 1 : last], future_annotations=annotations)
    imports = _find_imports(names, around, found, decorator)
    sent = {number: lines[number - 1] for number in range(first, last + 1)}
    statements = set()
    for statement, used in sorted(imports.items(), key=lambda each: (each[0].lineno, each[0].col_offset)):
        start, end = statement.lineno, statement.end_lineno or 0
        if isinstance(statement, _Import):  # its lines may have more names, and other statements
            end, needed = start, ast.unparse(_only(statement, used))
            sent[start] = f"{sent[start]}; {needed}" if start in sent else needed
        else:
            sent.update((number, lines[number - 1]) for number in range(start, end + 1))
        statements.add((start, end))
    text = "\n".join(sent.get(number, "") for number in range(1, max(sent) + 1))
    # the function comes last, also if an import stands below it
    return FunctionSource(text, (*sorted(statements), (first, last)), annotations)


def _only(statement: ast.Import | ast.ImportFrom, names: Set[str]) -> ast.stmt:
    """Return an import of the given names alone."""
    kept = [each for each in statement.names if _bound_name(each) in names]
    if isinstance(statement, ast.Import):
        return ast.Import(kept)
    return ast.ImportFrom(statement.module, kept, statement.level)


def _bound_name(name: ast.alias) -> str:
    return name.asname or name.name.partition(".")[0]


@functools.lru_cache(maxsize=16)
def _parse(text: str, filename: str) -> ast.Module | None:
    try:
        return ast.parse(text, filename)
    except SyntaxError:
        return None  # the file has changed


def _find_definition(tree: ast.Module, function: types.FunctionType) -> list[ast.AST] | None:
    """Return the definition of a function with everything around it, from the module inwards."""
    stack: list[list[ast.AST]] = [[tree]]
    while stack:
        path = stack.pop()
        for child in ast.iter_child_nodes(path[-1]):
            if isinstance(child, _Definition) and child.name == function.__code__.co_name:
                # the first line of a function is that of its first decorator
                start = min([child.lineno, *(each.lineno for each in child.decorator_list)])
                if start == function.__code__.co_firstlineno:
                    return [*path, child]
            stack.append([*path, child])
    return None


def _first_line(definition: _Definition, filename: str, lines: list[str]) -> int:
    """Return the first line after the decorator that is being applied."""
    decorators = definition.decorator_list
    applied = _line_of_application(filename, decorators)
    start = min([definition.lineno, *(each.lineno for each in decorators)]) if applied is None else applied + 1
    # comments and closing brackets may stand between two decorators
    return next(number for number in range(start, definition.lineno + 1) if _BEGINNING.match(lines[number - 1]))


def _line_of_application(filename: str, decorators: list[ast.expr]) -> int | None:
    """
    Return the line of the decorator that is being applied; ``None`` if the function is passed to it in another way.

    Only the running frames tell this, as the decorator may have any name: ``task.ray_job``, ``ray_job(...)``, an alias.
    """
    frame: types.FrameType | None = sys._getframe(1)  # noqa: SLF001
    while frame is not None:
        if frame.f_code.co_filename == filename:
            for each in decorators:
                if each.lineno <= frame.f_lineno <= (each.end_lineno or each.lineno):
                    return each.end_lineno or each.lineno
        frame = frame.f_back
    return None


def _names_used(lines: Sequence[str], *, future_annotations: bool) -> set[str]:
    """Return the names that a function takes from outside, when it is defined and when it runs."""
    is_indented = lines[0][:1].isspace()
    tree: Any = ast.parse("\n".join(["if 1:", *lines] if is_indented else lines))
    [definition] = tree.body[0].body if is_indented else tree.body
    # as the runner does: decorators may read the annotations of the signature
    remover = _AnnotationRemover(every=future_annotations)
    if not definition.decorator_list:
        remover.remove_from_signature(definition)
    return _free_names(ast.unparse(remover.visit(definition)))


def _free_names(text: str) -> set[str]:
    """Return the names that statements use and do not define."""
    module = symtable.symtable(text, "", "exec")
    tables, names = [module], set()
    for table in tables:
        names |= {each.get_name() for each in table.get_symbols() if each.is_referenced() and each.is_global()}
        tables += table.get_children()
    return names - {each.get_name() for each in module.get_symbols() if each.is_assigned() or each.is_imported()}


class _AnnotationRemover(ast.NodeTransformer):
    """
    Removes annotations that Python does not evaluate: those of local variables, and of functions if postponed.

    Those of classes stay: dataclasses and Pydantic read them, also if they are postponed.
    """

    def __init__(self, *, every: bool) -> None:
        self._every = every
        self._is_in_class = False

    def remove_from_signature(self, definition: Any) -> None:
        definition.returns = None
        for each in ast.walk(definition.args):
            if isinstance(each, ast.arg):
                each.annotation = None

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        return self._visit_scope(node, is_class=False)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        return self._visit_scope(node, is_class=False)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        return self._visit_scope(node, is_class=True)

    def _visit_scope(self, node: ast.AST, *, is_class: bool) -> ast.AST:
        if self._every and not is_class:
            self.remove_from_signature(node)
        was_in_class, self._is_in_class = self._is_in_class, is_class
        node = self.generic_visit(node)
        self._is_in_class = was_in_class
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        if not self._is_in_class:
            node.annotation = ast.Constant(None)
        return self.generic_visit(node)


def _find_imports(
    names: Set[str], around: Sequence[ast.AST], function: types.FunctionType, decorator: str
) -> dict[ast.stmt, set[str]]:
    """
    Return the statements that import names, in the scopes around a function, each with the names that are used of it.

    :param around: the module and everything else around the function, and the function itself.
    :raises ValueError: a name is defined outside of the function in another way.
    """
    found: dict[ast.stmt, set[str]] = {}
    outside, relative = set(), set()
    scopes = [_Scope.of(each, around) for each in reversed(around[:-1]) if isinstance(each, ast.Module | _Definition)]
    waiting = sorted(names)
    for name in waiting:
        scope = next((each for each in scopes if name in each.imports or name in each.bound), None)
        if scope is not None and name not in scope.bound:
            for statement in scope.imports[name]:
                if statement not in found:  # a ``try`` or ``if`` uses names, too
                    waiting += _free_names(ast.unparse(statement)) - set(waiting)
                found.setdefault(statement, set()).add(name)
                if not isinstance(statement, ast.Try) and _has_relative_import(statement):
                    relative.add(name)
        elif scope is not None or (name in function.__globals__ and name not in _IN_EVERY_MODULE):
            outside.add(name if name in names else f"{name} (in the try or if of an import)")
    if outside or relative:
        what = (
            f"{', '.join(sorted(outside))}, which it does not define"
            if outside
            else f"{', '.join(sorted(relative))}, which a relative import defines"
        )
        raise ValueError(
            f"{function.__name__} ({function.__code__.co_filename}, line {function.__code__.co_firstlineno}) uses "
            f"{what}. {decorator} sends the function to the cluster with the absolute imports that it uses, and "
            "nothing else of its file. Define it in the function, pass it as an argument, import it from a module in "
            "py_modules, or use serializer='cloudpickle'."
        )
    return found


@dataclass
class _Scope:
    """
    The names that a module or a function binds.

    :param imports: the statements that import a name. An import in a ``try`` or ``if`` is used with all of it.
    :param bound: the names that are also bound by another statement.
    """

    imports: dict[str, list[ast.stmt]]
    bound: set[str]

    @classmethod
    def of(cls, node: ast.AST, around: Collection[ast.AST]) -> _Scope:
        """
        Read the statements in a node.

        :param around: the function and the nodes around it: a ``try`` or ``if`` with the function is not sent whole.
        """
        scope = cls({}, set())
        if isinstance(node, _Definition):
            scope.bound.update(each.arg for each in ast.walk(node.args) if isinstance(each, ast.arg))
        for each in ast.iter_child_nodes(node):
            scope._add(each, around)
        return scope

    def _add(self, node: ast.AST, around: Collection[ast.AST]) -> None:
        if isinstance(node, _Import):
            for each in node.names:
                self.imports.setdefault(_bound_name(each), []).append(node)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            self.bound.add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            self.bound.add(node.name)
        elif isinstance(node, ast.If) and _is_main_block(node):
            pass  # the DAG processor and the workers skip it
        elif isinstance(node, ast.Try | ast.If) and node not in around:
            inner = _Scope.of(node, around)
            for name in inner.imports:
                self.imports.setdefault(name, []).append(node)
            self.bound |= inner.bound - inner.imports.keys()
        elif not isinstance(node, ast.Lambda):
            children: Iterable[ast.AST] = ast.iter_child_nodes(node)
            if isinstance(node, ast.If):  # the branch with the function is the one that runs
                children = node.body if any(each in around for each in node.body) else node.orelse
            for child in children:
                self._add(child, around)


def _has_relative_import(node: ast.AST) -> bool:
    return any(isinstance(each, ast.ImportFrom) and each.level for each in ast.walk(node))


def _is_main_block(node: ast.If) -> bool:
    return any(isinstance(each, ast.Name) and each.id == "__name__" for each in ast.walk(node.test))
