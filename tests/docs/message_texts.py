"""
The texts of the package's errors and warnings, found in its source without running it.

A message is made of texts: a fact, an address, a fix. Each is a literal in the source. Values in it, of an f-string, a
``%`` or a ``format`` field, are shown as ``…``. Docstrings are no texts.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import airflow_provider_rayjobs

PACKAGE = Path(airflow_provider_rayjobs.__file__).parent
VALUE = "…"
_WORD = re.compile(r"[A-Za-z][a-z']+|[A-Z]{2,}|\ba\b")
_FIELDS = re.compile(r"%[-+#0-9.]*[sdrfg]|\{[\w.:]+\}")


def normal_form(text: str) -> str:
    """Return a text with ``…`` for its fields, of which neighbours are one, without line ends and repeated blanks."""
    text = re.sub(r"HTTP \d{3}", f"HTTP {VALUE}", _FIELDS.sub(VALUE, text))
    return " ".join(re.sub(f"{VALUE}+", VALUE, text).replace("%%", "%").split())


def find_texts(path: Path) -> Iterator[tuple[str, bool]]:
    """Yield the texts of a module, and whether they are of a notice: a message of level INFO or DEBUG."""
    yield from _literals(ast.parse(path.read_text(encoding="utf-8")), is_notice=False)


def has_words(text: str) -> bool:
    """Tell whether a text has two words or more: a name, a key or a sign is no message."""
    return " " in text and len(_WORD.findall(text)) >= 2


def _literals(node: ast.AST, *, is_notice: bool) -> Iterator[tuple[str, bool]]:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):  # a docstring
        return
    if isinstance(node, ast.Call):
        name = ast.unparse(node.func).rpartition(".")[2]
        is_log_message = name == "LogMessage" and "WARNING" not in ast.unparse(node)
        is_notice = is_notice or name in ("info", "debug") or is_log_message
    children = list(ast.iter_child_nodes(node))
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield normal_form(node.value), is_notice
    elif isinstance(node, ast.JoinedStr):
        parts = (str(each.value) if isinstance(each, ast.Constant) else VALUE for each in node.values)
        yield normal_form("".join(parts)), is_notice
        children = [each.value for each in node.values if isinstance(each, ast.FormattedValue)]
    for child in children:
        yield from _literals(child, is_notice=is_notice)
