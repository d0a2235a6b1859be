"""
Send a mail when a Ray job has failed, with the lines of its error.

The mail server is that of the connection ``smtp_default``.
"""

from __future__ import annotations

# START mail
import pendulum
from airflow.providers.smtp.notifications.smtp import SmtpNotifier
from airflow.sdk import DAG

from airflow_provider_rayjobs.operators import RayJobSubmitOperator

with DAG(
    "ray_jobs_mail",
    schedule=None,
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    tags=["ray"],
    doc_md=__doc__,
):
    RayJobSubmitOperator(
        task_id="train",
        entrypoint=["python", "-c", "raise ValueError('no data')"],
        on_failure_callback=SmtpNotifier(
            from_email="airflow@example.com",
            to="team@example.com",
            subject="{{ ti.dag_id }}.{{ ti.task_id }} failed",
            # HTML joins lines and takes <stdin> for a tag: <pre> keeps the lines, "e" escapes the text.
            html_content='<pre>{{ exception | e }}</pre><a href="{{ ti.log_url }}">Log</a>',
        ),
    )
# END mail
