"""Whatever a test has started ends with it, also where it fails."""

from collections.abc import Iterator

import pytest

from tests.flows.processes import STARTED


@pytest.fixture(autouse=True)
def _no_process_outlives_its_test() -> Iterator[None]:
    yield
    for process in STARTED:
        process.kill()
        process.communicate()
    STARTED.clear()
