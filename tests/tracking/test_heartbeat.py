"""A heartbeat by itself."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from src.errors import ConfigError
from src.tracking.heartbeat import Heartbeat, HeartbeatThread
from src.tracking.run import tracked_run
from tests.tracking.test_outbox import until


def test_a_heartbeat_that_is_none() -> None:
    good = json.loads(Heartbeat.now().to_json())
    for changes in ({"pid": -1}, {"pid": "x"}, {"started": float("nan")}, {"time": "now"}, {"time": None}):
        assert Heartbeat.from_json(json.dumps(good | changes)) is None
    for text in ("", "3", "null", "[]", '{"pid": 3}', "{"):
        assert Heartbeat.from_json(text) is None
    again = Heartbeat.from_json(json.dumps(good))
    assert again is not None
    assert again.is_alive()


def test_a_failing_one_is_told_once_and_ends_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    calls = []

    def fail(tags: Mapping[str, str]) -> None:
        calls.append(tags)
        raise OSError(28, "No space left on device")

    heartbeat = HeartbeatThread(fail, 0.01)
    until(lambda: len(calls) > 5)
    heartbeat.stop()
    told = capsys.readouterr().err
    assert told.count("\n") == told.count("heartbeat is not recorded: [Errno 28] No space left") == 1


@pytest.mark.parametrize("text", ["soon", "0", "-1", "nan", "inf"])
def test_a_wrong_number_of_seconds_is_told_before_there_is_a_run(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLPROJECT_HEARTBEAT_SECONDS", text)
    with pytest.raises(ConfigError, match="MLPROJECT_HEARTBEAT_SECONDS"), tracked_run({}):
        pass
    assert not Path("mlflow.db").exists()
