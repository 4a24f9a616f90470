"""The journal on disk."""

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
    journal = begin(results)
    before = (results / FOLDER / "journal.jsonl").read_bytes()
    for step in range(20):
        add(journal, step)
        (item,) = journal.pending.values()
        journal.done(item)
    assert (results / FOLDER / "journal.jsonl").read_bytes() == before


def test_a_run_that_goes_on_has_not_ended(results: Path) -> None:
    journal = begin(results)
    add(journal, 1)
    journal.add(journal.reserve(), STATUS, {"status": "KILLED", "end_time": 1})
    assert [item.kind for item in begin(results).pending.values()] == [METRICS]


def test_files_go_with_their_item(results: Path) -> None:
    journal = begin(results)
    number = journal.reserve(with_folder=True)
    (journal.place(number) / "a.txt").write_text("a")
    journal.add(number, ARTIFACT, {"name": "a.txt", "folder": ""})
    journal.done(journal.pending[number])
    assert not journal.place(number).exists()
    journal.remove()
    assert not list(results.iterdir())


def test_one_at_a_time(results: Path) -> None:
    with journal_lock(results), pytest.raises(TrackingError, match="wait for its end"), journal_lock(results):
        pass
