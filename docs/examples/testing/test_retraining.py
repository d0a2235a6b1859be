"""Tests of the DAG, without a cluster."""

# START test
import math
from typing import Any

import pytest
from retraining import dag

from airflow_provider_rayjobs.testing import FakeRay, Plan


def states(run: Any) -> dict[str, str]:
    return {ti.task_id: str(ti.state) for ti in run.get_task_instances()}


def test_training(fake_ray: FakeRay) -> None:
    fake_ray.plan("train", Plan(log="epoch 1\nepoch 2", result=0.25))

    run = dag.test()

    assert set(states(run).values()) == {"success"}
    [job] = fake_ray.jobs_of("train")
    assert job.entrypoint == f"python train.py --run {run.run_id}"
    assert job.runtime_env["pip"] == ["torch"]
    assert job.submission["entrypoint_num_gpus"] == 1


def test_failure(fake_ray: FakeRay, capsys: pytest.CaptureFixture[str]) -> None:
    fake_ray.plan("train", Plan(exit_code=3, log="no data"))

    run = dag.test()

    assert states(run)["train"] == "failed"
    assert states(run)["publish"] == "upstream_failed"
    assert "FAILED with exit code 3" in capsys.readouterr().out


def test_no_room_on_the_cluster(fake_ray: FakeRay) -> None:
    fake_ray.plan("prepare", Plan(pending=math.inf))

    # pending_timeout is 10 minutes, but the test waits for nothing
    assert states(dag.test())["prepare"] == "failed"
    [job] = fake_ray.jobs
    assert job.stop_accepted is not None


# END test
