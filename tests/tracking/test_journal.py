"""The journal on disk."""

import contextlib
from pathlib import Path

import pytest

from src.errors import TrackingError, UserError
from src.tracking.journal import ARTIFACT, FOLDER, METRICS, STATUS, Journal, journal_lock


def begin(results: Path) -> Journal:
    return Journal.begin(results, "r1", "http://127.0.0.1:1")


def add(journal: Journal, step: int) -> None:
    journal.add(journal.reserve(), METRICS, {"step": step, "timestamp": 5, "values": {"a": 1.5}})


def steps(journal: Journal) -> list[int]:
    return [item.content["step"] for item in journal.pending.values()]


def test_what_is_not_done_is_read_back_in_order(results: Path) -> None:
    journal = begin(results)
    for step in (1, 2, 3):
        add(journal, step)
    journal.done(journal.pending[2])
    again = Journal.read(results)
    assert (again.run_id, again.store, steps(again)) == ("r1", "http://127.0.0.1:1", [1, 3])
    assert all(item.is_doubtful for item in again.pending.values())


def test_an_undecided_last_line_is_none(results: Path) -> None:
    journal = begin(results)
    add(journal, 1)
    add(journal, 2)
    path = results / FOLDER / "journal.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    again = Journal.read(results)
    assert steps(again) == [1]
    add(again, 3)
    assert steps(Journal.read(results)) == [1, 3]


def test_a_journal_without_its_first_line_is_refused(results: Path) -> None:
    begin(results)
    (results / FOLDER / "journal.jsonl").write_bytes(b'{"run_id": "r')
    with pytest.raises(UserError, match="names no run"):
        Journal.read(results)


def test_it_stays_small_where_everything_arrives(results: Path) -> None:
    journal, path = begin(results), results / FOLDER / "journal.jsonl"
    add(journal, 0)
    journal.arrived(journal.pending[1])
    for _ in range(400):
        content = {"step": 1, "timestamp": 5, "values": {"a": 1.5, "b" * 2000: 1.5}}
        journal.done(journal.add(journal.reserve(), METRICS, content))
    assert path.stat().st_size < 300_000
    again = Journal.read(results)
    assert (steps(again), [item.is_sent for item in again.pending.values()]) == ([0], [True])


def test_no_flipped_byte_goes_unnoticed(results: Path) -> None:
    journal, path = begin(results), results / FOLDER / "journal.jsonl"
    for step in (1, 2, 3):
        add(journal, step)
    journal.done(journal.pending[2])
    journal.arrived(journal.pending[3])
    journal.add(journal.reserve(), STATUS, {"status": "FINISHED", "end_time": 1})
    data = path.read_bytes()
    first = data.index(b"\n") + 1
    for place in range(len(data)):
        line = data[:place].count(b"\n") + 1
        for flip in (0x01, 0xFF):
            path.write_bytes(data[:place] + bytes([data[place] ^ flip]) + data[place + 1 :])
            if place < first:
                with contextlib.suppress(UserError):  # its line 1 is damaged, or all the same
                    again = Journal.read(results, repair=False)
                    assert again.damaged or (again.run_id, steps_of_all(again)) == ("r1", [1, 3])
                continue
            again = Journal.read(results, repair=False)
            assert again.damaged[0] == line
            assert 1 <= len(again.damaged) <= 2  # a byte may become a line feed


def steps_of_all(journal: Journal) -> list[int]:
    return [item.content["step"] for item in journal.pending.values() if item.kind == METRICS]


def test_a_damaged_line_is_named_until_the_run_goes_on(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journal, path = begin(results), results / FOLDER / "journal.jsonl"
    add(journal, 1)
    add(journal, 2)
    path.write_bytes(path.read_bytes().replace(b'"step": 1', b'"step": 7'))
    again = Journal.read(results)
    assert (again.damaged, steps(again)) == ([2], [2])
    again.done(again.pending[2])
    assert "journal.jsonl, line 2: damaged on disk" in Journal.read(results).where_damaged
    begin(results)
    assert "line 2: damaged on disk" in capsys.readouterr().err
    assert Journal.read(results).damaged == []


def test_a_journal_of_an_earlier_version_is_read(results: Path) -> None:
    path = results / FOLDER / "journal.jsonl"
    path.parent.mkdir(parents=True)
    content = '{"step": 4, "timestamp": 5, "values": {"a": 1.5}}'
    path.write_text(
        '{"run_id": "r1", "store": "http://127.0.0.1:1"}\n'
        f'{{"number": 3, "kind": "metrics", "content": {content}}}\n'
        f'{{"number": 4, "kind": "metrics", "content": {content}}}\n{{"done": 4}}\n'
    )
    journal = Journal.read(results)
    assert (journal.run_id, steps(journal), journal.last, journal.damaged) == ("r1", [4], 4, [])
    add(journal, 5)
    assert steps(Journal.read(results)) == [4, 5]


def test_a_run_that_goes_on_has_not_ended(results: Path) -> None:
    journal = begin(results)
    add(journal, 1)
    journal.add(journal.reserve(), STATUS, {"status": "KILLED", "end_time": 1})
    assert [item.kind for item in begin(results).pending.values()] == [METRICS]


def test_files_go_with_their_item(results: Path) -> None:
    journal = begin(results)
    number = journal.reserve(with_folder=True)
    (journal.folder_of(number) / "a.txt").write_text("a")
    journal.add(number, ARTIFACT, {"name": "a.txt", "folder": ""})
    journal.done(journal.pending[number])
    assert not journal.folder_of(number).exists()
    journal.remove()
    assert not list(results.iterdir())


def test_one_at_a_time(results: Path) -> None:
    with journal_lock(results), pytest.raises(TrackingError, match="wait for its end"), journal_lock(results):
        pass
