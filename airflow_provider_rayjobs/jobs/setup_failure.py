"""Find out why a runtime environment could not be set up, in Ray's message about it; no I/O."""

from __future__ import annotations

import re

from airflow_provider_rayjobs.jobs.logs.cursor import find_exception

_LONGEST = 500
# Ray quotes the last 50 lines of the installer, indented. After a conflict, pip's last such line is only a link.
_OF_PIP = re.compile(r"^ *(ERROR: (?!ResolutionImpossible).*)", re.MULTILINE)
# uv explains an error in the lines that follow it.
_OF_UV = re.compile(r"^ *((?:error: |\N{MULTIPLICATION SIGN} ).*)", re.MULTILINE | re.DOTALL)


def find_setup_error(message: str) -> str:
    """Return the error of the installer, otherwise Ray's own exception, as one line. Empty if there is neither."""
    if of_pip := _OF_PIP.findall(message):
        found = of_pip[-1]
    elif of_uv := _OF_UV.search(message):
        found = of_uv[1]
    else:
        found = find_exception(message.splitlines())
    line = " ".join(found.split())
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]} ..."
