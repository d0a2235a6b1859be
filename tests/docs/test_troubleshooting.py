"""The page on troubleshooting has every error and every warning of the package, and no other."""

from __future__ import annotations

import re
from collections.abc import Iterator

from doc_files import DOCS
from message_texts import PACKAGE, VALUE, find_texts, has_words, normal_form

PAGE = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
# Modules whose texts are no messages of a task, a worker or a triggerer.
OTHER_MODULES = {
    "get_provider_info.py": "descriptions of fields and settings, in the reference",
    "metrics.py": "the meanings of metrics, in the reference",
    "testing/": "a fake cluster for tests: its errors are those of a test's author",
}
# Texts that are no part of a message that a user sees.
NO_MESSAGES = {
    "the words of other programs that the code looks for": {
        "plain HTTP request was sent to HTTPS port", "HTTP request to an HTTPS server",
        "Invalid URL in location header", "server disconnected|peer closed",
        "No required SSL certificate was sent", "The SSL certificate error",
        "Please use a different submission_id", "submission type jobs", "does not exist",
        "authentication token", "non-terminal state",
        "Traceback (most recent call last)", ", last available logs", "waiting for resources",
        "client has been closed", "The above exception was the direct cause of the following exception:",
        "During handling of the above exception, another exception occurred:",
    },
    "the form of a message in a job's log": {"##ray_job … part … …/… … …"},
    "errors that end the reading of one record, which is then ignored": {
        "… is not a size", "the extra is too large", "… is not JSON", "… is not a number", "… is not finite",
        "an exception has a class", "… is of type …", "… is too large", "… is no quantity",
    },
    "the cause behind a timeout, which the message has as such": {"the answer was not complete in time"},
    "mistakes in this package": {
        "The job record was not read yet.", "The arguments were not read yet.", "The connection was not read yet.",
        "This try has no job record yet.",
    },
    "values of an attribute of errors": {
        "not sent", "may have arrived", "refused by Ray", "answered by another program",
    },
    "parts of notices of level INFO": {
        "Hashing local code", "on the cluster", "stored at …", "would delete", ", map index …",
    },
    "names and labels": {"Ray Jobs", "Ray job", "no log", "Ray … at …"},
}  # fmt: skip
_REGULAR_EXPRESSION = re.compile(r"\(\?|\\|\.\*")
_FENCE = re.compile(r"^```text\n(.*?)^```", re.MULTILINE | re.DOTALL)
# A message may be made of several texts, and a heading has the beginning of one.
_PARTS = re.compile(rf"{VALUE}|(?<=[.,:;]) | (?=\()")
_SIGNS = " .,:;()'"
_CODE = re.compile(r"`([^`\n]+)`")


def is_message(text: str) -> bool:
    is_excluded = _REGULAR_EXPRESSION.search(text) or any(text in texts for texts in NO_MESSAGES.values())
    return has_words(text) and not is_excluded


def texts_of_package() -> Iterator[tuple[str, bool]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        if not str(path.relative_to(PACKAGE)).startswith(tuple(OTHER_MODULES)):
            yield from find_texts(path)


def shown_messages() -> tuple[list[str], list[str]]:
    """Return the messages on the page, those in headings, first cells and blocks of text, and those anywhere."""
    lines = _FENCE.sub("", PAGE).splitlines()
    cells = [line.partition(" | ")[0] for line in lines if line.startswith("| ")]
    blocks = [line for block in _FENCE.findall(PAGE) for line in block.splitlines()]
    entries = [code for line in lines if line.startswith("#") for code in _CODE.findall(line)]
    entries += [code for cell in cells for code in _CODE.findall(cell)]
    everywhere = [code for line in lines for code in _CODE.findall(line)]
    return [*map(normal_form, entries + blocks)], [*map(normal_form, everywhere + blocks)]


def test_every_error_and_warning_is_on_the_page():
    """Each text of a message that a user may see is found on the page, word by word."""
    shown = "\n".join(shown_messages()[1])
    texts = {text for text, is_notice in texts_of_package() if not is_notice and is_message(text)}

    assert len(texts) > 400
    assert sorted(text for text in texts if not _pattern(text).search(shown)) == []


def _pattern(text: str) -> re.Pattern[str]:
    """Return a pattern for a text on the page, which may show another text in place of a value."""
    return re.compile(".*".join(map(re.escape, text.split(VALUE))))


def test_every_entry_is_in_the_code():
    """A message on the page that the code no longer has, or has in other words, is noticed."""
    texts = {text for text, _ in texts_of_package() if VALUE in text or has_words(text)}
    parts = {part.strip(_SIGNS) for text in texts for part in _PARTS.split(text)} - {""}
    known = re.compile("|".join(map(_as_words, sorted(parts, key=len, reverse=True))))
    unknown = {entry: rest for entry in shown_messages()[0] if re.search("[a-z]", rest := known.sub("", entry))}

    assert unknown == {}


def _as_words(part: str) -> str:
    return rf"(?<!\w){re.escape(part)}(?!\w)" if part[0].isalnum() and part[-1].isalnum() else re.escape(part)


def test_no_exclusion_is_outdated():
    """Each text that is excluded is still in the code."""
    texts = {text for text, _ in texts_of_package()}

    assert [text for excluded in NO_MESSAGES.values() for text in excluded if text not in texts] == []
