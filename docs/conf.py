"""Configuration of the documentation site. ``make docs`` builds it into build/docs, without network."""

from __future__ import annotations

import os
import tempfile

# autodoc imports the package, and with it Airflow, which writes its configuration into its home at the first import.
os.environ.setdefault("AIRFLOW_HOME", tempfile.mkdtemp(prefix="airflow-docs-"))

from airflow_provider_rayjobs import __version__

project = "airflow-provider-rayjobs"
author = "The authors of airflow-provider-rayjobs"
copyright = f"2026, {author}"  # noqa: A001  (Sphinx's name)
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["examples", "_generated"]
nitpicky = True
# Types of other packages, whose documentation is elsewhere, and parts of this one that users do not name.
nitpick_ignore_regex = [
    ("py:.*", r"(collections\.abc|httpx|logging)\..*"),
    ("py:.*", r"timedelta|P|R|Task|XComArg|Rendered|ObjectStoragePath|RetryAction|RetryRule|AirflowNotFoundException"),
    ("py:.*", r"airflow_provider_rayjobs\.(task|metrics|log_budget)\..*|airflow_provider_rayjobs\.decorators\.R"),
    (
        "py:.*",
        r"LogOptions\..*|Limits\..*|JobRef\..*|LogReader\..*|log_budget|submission\..*|LoggerLike|Observer|Transport",
    ),
]

myst_enable_extensions = ["colon_fence", "deflist", "fieldlist"]
myst_heading_anchors = 3
myst_links_external_new_tab = True

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"

# The links of `make docs-links`: some sites refuse programs, and anchors of GitHub pages are made by JavaScript.
linkcheck_anchors = False
linkcheck_timeout = 30

html_theme = "furo"
html_title = "Airflow provider for Ray Jobs"
html_show_sphinx = False
html_static_path = ["_static"]
html_css_files = ["messages.css"]
