"""YAML that would take minutes or gigabytes is refused; what people write is read."""

import json
import sys
from pathlib import Path

import pytest

from src.errors import ConfigError
from src.utils.config_yaml import parse_yaml, read_yaml
from src.utils.limits import CONFIG_VALUES, FACTOR
from tests import hostile_files as hostile
from tests.conftest import Run

READ = """
import json, resource, sys, time
resource.setrlimit(resource.RLIMIT_AS, (10**9, 10**9))
from src.errors import ConfigError
from src.utils.config import Config

answers = []
for path in sys.argv[1:]:
    started = time.monotonic()
    try:
        Config.from_file(path)
    except ConfigError as error:
        answers.append((time.monotonic() - started, str(error)))
print(json.dumps(answers))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="macOS does not limit a process's memory")
def test_answered_in_bounded_time_and_memory(folder: Path, run_python: Run) -> None:
    for number, (text, _) in enumerate(hostile.YAML.values()):
        (folder / f"{number}.yaml").write_text(text)
    done = run_python("-c", READ, *(f"{number}.yaml" for number in range(len(hostile.YAML))))
    assert done.returncode == 0, done.stderr[-2000:]
    answers = json.loads(done.stdout)
    for (name, (_, expected)), (seconds, message) in zip(hostile.YAML.items(), answers, strict=True):
        assert expected in message, name
        assert seconds < 10, name
        assert len(message) < 500, name


def test_as_many_values_as_the_limit_are_read_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    text = f"[{','.join(['1'] * CONFIG_VALUES.base)}]"
    with pytest.raises(ConfigError, match=rf"10,001 YAML values.*{FACTOR}.* at least 2$"):
        parse_yaml(text, "x.yaml")
    monkeypatch.setenv(FACTOR, "2")
    assert parse_yaml(text, "x.yaml") == [1] * CONFIG_VALUES.base


def test_aliases_and_merge_keys_are_read() -> None:
    text = "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: [*a, *a]\nd: {<<: *a, z: 4}\n"
    same = {"x": 1, "y": 2}
    assert parse_yaml(text, "x.yaml") == {
        "a": same,
        "b": {"x": 1, "y": 3},
        "c": [same, same],
        "d": {"x": 1, "y": 2, "z": 4},
    }


def test_a_mapping_that_overrides_what_it_merges_may_be_merged_itself() -> None:
    text = "a: &a {x: 1}\nb: &b {<<: *a, x: 2}\nc: {<<: *b, y: 3}\n"
    assert parse_yaml(text, "x.yaml")["c"] == {"x": 2, "y": 3}


@pytest.mark.parametrize("kind", hostile.KINDS)
def test_what_is_no_file_is_refused_by_its_kind(kind: str, folder: Path) -> None:
    write, message = hostile.KINDS[kind]
    write(folder / "x.yaml")
    with pytest.raises(ConfigError, match=f"x.yaml: cannot be read as text: {message}"):
        read_yaml(folder / "x.yaml")


def test_a_folder_is_no_config(folder: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read as text: is a directory, not a regular file"):
        read_yaml(folder)


def test_line_ends_of_other_systems(folder: Path) -> None:
    (folder / "x.yaml").write_bytes(b"a: |\r\n  b\r\n  c\r\n")
    assert read_yaml(folder / "x.yaml") == {"a": "b\nc\n"}
