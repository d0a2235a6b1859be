"""Find out why a runtime environment could not be set up, in Ray's message about the job; no I/O."""

from __future__ import annotations

import re

from airflow_provider_rayjobs.jobs.logs.cursor import find_exception

_LONGEST = 500
# Ray quotes the last 50 lines of the installer, indented. After a conflict, pip's last such line is only a link.
_OF_PIP = re.compile(r"^ *(ERROR: (?!ResolutionImpossible).*)", re.MULTILINE)
# uv explains an error in the lines that follow it.
_OF_UV = re.compile(r"^ *((?:error: |\N{MULTIPLICATION SIGN} ).*)", re.MULTILINE | re.DOTALL)
# Ray checks the runtime environment while it creates the supervisor, and quotes the traceback.
_REFUSED = re.compile(r"Failed to start supervisor actor [\s\S]*^  File .*, in parse_runtime_env\w*$", re.MULTILINE)


def is_refused(message: str) -> bool:
    """Tell whether Ray refused the runtime environment itself, before any node set it up. No retry can fix it."""
    return _REFUSED.match(message) is not None


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
