"""A try whose head restarts, and loses its packages, while the job is submitted."""

from __future__ import annotations

from pathlib import Path

from test_execution import Store, context

from airflow_provider_rayjobs.operators import RayJobSubmitOperator
from airflow_provider_rayjobs.testing import FakeRay


def test_repeated_submission_has_its_package(tmp_path: Path):
    """A try that repeats its submission uploads the package again if the cluster has lost it."""
    (tmp_path / "main.py").write_text("print(1)\n")
    operator = RayJobSubmitOperator(
        task_id="train",
        entrypoint="python main.py",
        runtime_env={"working_dir": str(tmp_path)},
        wait_for_completion=False,
    )

    def restart_at_the_first_submission(method: str, path: str) -> None:
        if method == "POST" and fake.requests.count("POST /api/jobs/") == 1:
            fake.restart()
            raise ConnectionError("the head restarts")

    with FakeRay() as fake:
        fake.on_request = restart_at_the_first_submission
        operator.execute(context(Store()))

    requests = [each.partition(" ")[0] for each in fake.requests if not each.endswith("/version")]
    assert requests == ["GET", "PUT", "GET", "POST", "GET", "PUT", "GET", "POST"]
    [job] = fake.jobs
    uri = job.runtime_env["working_dir"]
    assert uri.startswith("gcs://_ray_pkg_")
    assert uri.removeprefix("gcs://") in fake.packages
