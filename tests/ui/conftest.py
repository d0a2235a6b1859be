"""A browser, and an Airflow with the DAGs of these tests. Nothing of it is started without Chromium."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Error, Locator, Page, expect, sync_playwright

from sandbox.local_airflow import LocalAirflow
from sandbox.ray_head import RayHead, connection_to

ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium")
CHROMIUM_OPTIONS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
# Milliseconds for one condition. A busy machine starts a task within a minute, and Airflow's UI polls.
TIMEOUT = 120_000
# Replaces texts of the page, also of parts that are rendered again before the picture is taken.
REPLACE_TEXTS = """replacements => {
    const replace = () => {
        const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT)
        while (texts.nextNode())
            for (const [old, new_] of Object.entries(replacements))
                if (texts.currentNode.data.includes(old))
                    texts.currentNode.data = texts.currentNode.data.replaceAll(old, new_)
    }
    replace()
    new MutationObserver(replace).observe(document.body, {subtree: true, childList: true, characterData: true})
}"""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Add to the report of a failed test what the browser shows."""
    report = yield
    page = getattr(item, "funcargs", {}).get("page")
    if page is not None and call.when == "call" and report.failed:
        with suppress(Error):
            report.sections.append(("browser", f"{page.url}\n{page.locator('body').aria_snapshot()}"))
    return report


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Skip the test without Chromium, or fail it if ``REQUIRE_CHROMIUM`` is set, as in the CI."""
    if CHROMIUM is None:
        message = "chromium is not installed (Debian: apt-get install chromium)"
        if os.environ.get("REQUIRE_CHROMIUM"):
            pytest.fail(message)
        pytest.skip(message)
    expect.set_options(timeout=TIMEOUT)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_OPTIONS)
        yield chromium
        with suppress(Error):  # Ctrl-C has ended the driver, too
            chromium.close()


@pytest.fixture(scope="session")
def dags(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The nightly example, the example with functions, and the DAGs of these tests."""
    folder = tmp_path_factory.mktemp("dags")
    shutil.copytree(Path(__file__).parent / "dags", folder, dirs_exist_ok=True)
    for name in ("jobs", "data"):
        shutil.copytree(ROOT / "example_dags" / name, folder / name, dirs_exist_ok=True)
    for name in ("ray_jobs_nightly", "ray_jobs_functions"):
        shutil.copy(ROOT / "example_dags" / f"{name}.py", folder)
    return folder


@pytest.fixture(scope="session")
def releases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the release files."""
    return tmp_path_factory.mktemp("releases")


@pytest.fixture(scope="session")
def airflow(browser: Browser, ray_head: RayHead, dags: Path, releases: Path) -> Iterator[LocalAirflow]:
    settings = {
        "UI_RELEASES": str(releases),
        # The files do not change. Their processes would slow the tests down.
        "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "3600",
    }
    running = LocalAirflow(dags, connection_to(ray_head), settings, paused=True, separate_execution_api=True)
    try:
        yield running.start(timeout=400)
    finally:
        running.close()


@pytest.fixture(scope="session")
def runs(airflow: LocalAirflow) -> dict[str, str]:
    """The run of each DAG but the nightly one. They start together, because they spend their time waiting."""
    names = (
        "ray_jobs_functions", "ui_growing_log", "ui_clear_running", "ui_clear_deferred", "ui_clear_failed",
        "ui_clear_success", "ui_mark_failed",
    )  # fmt: skip
    return {name: airflow.trigger(name) for name in names}


@pytest.fixture
def page(browser: Browser, airflow: LocalAirflow) -> Iterator[Page]:
    """Airflow's home page, in a browser without cookies."""
    context = browser.new_context(viewport={"width": 1280, "height": 800}, locale="en-US", timezone_id="UTC")
    context.set_default_timeout(TIMEOUT)
    page = context.new_page()
    page.goto(airflow.address)
    yield page
    with suppress(Error):  # Ctrl-C has ended the driver, too
        context.close()


@pytest.fixture
def picture(dags: Path, ray_head: RayHead, tmp_path: Path) -> Callable[[Page | Locator, str, int], None]:
    """
    Take a picture of the documentation, of a part of a page. The last argument is the height of the browser's window.

    Only with ``UPDATE_PICTURES`` does it replace the picture in docs/images.
    """
    folder = ROOT / "docs" / "images" if os.environ.get("UPDATE_PICTURES") else tmp_path
    # the addresses of this machine, as those of a reader
    replacements = {str(dags): "/opt/airflow/dags", str(ray_head.port): "8265"}

    def take(target: Page | Locator, name: str, height: int) -> None:
        page = target if isinstance(target, Page) else target.page
        page.set_viewport_size({"width": 1280, "height": height})
        page.mouse.move(640, 2)
        expect(page.get_by_role("tooltip")).to_have_count(0)
        page.evaluate(REPLACE_TEXTS, replacements)
        target.screenshot(path=folder / f"{name}.png", animations="disabled")

    return take
