"""The pages of the documentation: what they show is tested, and their sentences are short."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from doc_files import DOCS, EXAMPLES, PAGES, ROOT, name_of

from docs.reading_ease import measure

# Texts that a program prints, and drawings, are no code.
_NO_CODE = {"text"}
_FENCE = re.compile(r"^ *`{3,}([\w{}-]*)", re.MULTILINE)
# An error fails the try, or the task at once: docs/guides/errors.md. Airflow itself may fail a task.
_VAGUE_FAILURE = re.compile(
    r"^(?!.*(?:Airflow|at once)).*\bfails? (?:the|a) task\b.*|.*\bfails? (?:\w+ )*without a retry.*", re.MULTILINE
)
_INCLUDED = re.compile(r"^ *`{3,}\{literalinclude\} (\S+)", re.MULTILINE)
# Files that tests run: those of the documentation by tests/docs, the example DAGs by tests/test_end_to_end.py.
_RUN = (EXAMPLES, ROOT / "example_dags")
# tests/test_readme.py runs the code of the README, which other sites show without the files of the repository.
SITE = [page for page in PAGES if page.is_relative_to(DOCS)]


def included_by(page: Path) -> list[Path]:
    return [(page.parent / target).resolve() for target in _INCLUDED.findall(page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("page", SITE, ids=name_of)
def test_code_is_included_from_files_that_tests_run(page: Path):
    """A page has no code of its own: every snippet is included from a file that a test runs."""
    opened = _FENCE.findall(page.read_text(encoding="utf-8"))[::2]

    assert [kind for kind in opened if not kind.startswith("{") and kind not in _NO_CODE] == []
    assert [path for path in included_by(page) if not any(path.is_relative_to(top) for top in _RUN)] == []


def test_every_example_is_shown():
    """Every file in ``docs/examples`` is shown by a page. Files in folders below it belong to one that is."""
    shown = {path for page in SITE for path in included_by(page)}

    assert {path for path in EXAMPLES.iterdir() if path.is_file()} - shown == set()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_sentences_are_short(page: Path):
    """Half of a page's sentences have 15 words or fewer, nine in ten have 25 or fewer."""
    ease = measure(page.read_text(encoding="utf-8"))

    assert ease.median <= 15
    assert ease.p90 <= 25


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_one_sentence_per_line(page: Path):
    """Each line of the source has one sentence at most, so that a change of one shows as one line."""
    assert measure(page.read_text(encoding="utf-8")).crowded == []


@pytest.mark.parametrize("page", SITE, ids=name_of)
def test_failures_are_of_the_try_or_of_the_task_at_once(page: Path):
    """A page says whether an error fails the try, which is retried, or the task at once."""
    assert _VAGUE_FAILURE.findall(page.read_text(encoding="utf-8")) == []


def test_glossary_terms_are_linked_from_other_pages():
    """Each word of the glossary is linked where a guide or the reference uses it."""
    glossary = DOCS / "reference" / "glossary.md"
    body = glossary.read_text(encoding="utf-8").partition("```{glossary}\n")[2]
    terms = re.findall(r"^(\w.*)$", body, re.MULTILINE)
    links = [
        found[0] or found[1]
        for page in SITE
        if page != glossary
        for found in re.findall(r"\{term\}`(?:[^`<]+<([^`>]+)>|([^`<]+))`", page.read_text(encoding="utf-8"))
    ]

    assert len(terms) == len(set(terms)) > 10
    assert set(terms) - set(links) == set()
