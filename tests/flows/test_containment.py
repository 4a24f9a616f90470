"""A store that was edited, and links among its files: no command reads or changes anything outside."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from src import cleanup, report
from src import store as store_command
from src.training.run_folder import RunFolders
from tests.hostile_stores import (
    CANARY,
    OUTPUT,
    edit,
    make_old,
    make_outside,
    make_run,
    models_of,
    place_of,
    register,
    set_artifact_uri,
    set_param,
    snapshot,
)
from tests.stores import place_store

pytestmark = pytest.mark.slow

HOSTILE = [
    "{outside}",
    "file://{outside}",
    "file:///etc",
    "/",
    "..",
    "../outside",
    "../../..",
    "",
    ".",
    "a\0b",
]
HOSTILE += ["{here}/mlruns/0/{champion}/artifacts", "{here}/mlruns/0/../../outside", "file://host/{outside}"]
HOSTILE += [
    "n" * 190,
    "best",
    "logs",
    "link",
    "models:/m-x",
    "runs:/{champion}/model",
    "s3://bucket/key",
    "%2e%2e/x",
]
HOSTILE += [
    "/old/../../outside",
    "{outside}/{run}/artifacts",
    "/old/outside",
    "~",
    "\u202e\x1b[31m",
    "a b'\"; --",
]
LINKS = [
    "outputs/one",
    "outputs/one/checkpoints",
    "outputs/logs/one",
    "outputs/one/undelivered",
    "outputs/cache",
]
LINKS += [
    "outputs/one/.tmp-999999999-x",
    "mlruns/0/{run}",
    "mlruns/0/{run}/artifacts",
    "mlruns/0/{run}/predictions",
]
FILES = ["mlruns/0/{run}/artifacts/config.yaml", "mlruns/0/{run}/artifacts/training_history.csv"]
FILES += ["outputs/one/undelivered/journal.jsonl", "outputs/one/run_id", "outputs/.tmp-999999999-y"]
COMMANDS = [
    (report.main, []),
    (store_command.main, ["doctor"]),
    (store_command.main, ["doctor", "--apply"]),
    (store_command.main, ["sync", "outputs/one"]),
    (store_command.main, ["sync", "outputs/best"]),
    (store_command.main, ["relocate"]),
    (report.main, []),
    (cleanup.main, ["--keep-days", "0", "--keep-best", "0"]),
    (cleanup.main, ["--keep-days", "0", "--keep-best", "0", "--apply"]),
    (cleanup.main, ["--keep-days", "0", "--keep-best", "0", "--runs", "--apply"]),
    (store_command.main, ["doctor", "--apply"]),
]


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project, with a store in it; what is beside it is outside."""
    here = folder / "project"
    here.mkdir()
    monkeypatch.chdir(here)
    place_store(here / "mlflow.db")
    return here


def place_links(choose: random.Random, outside: Path, run_id: str) -> Iterator[str]:
    for name, is_file in [(choose.choice(LINKS), False), (choose.choice(FILES), True)]:
        path = Path(name.format(run=run_id))
        target = outside / (
            path.name if (outside / path.name).exists() else "config.yaml" if is_file else "."
        )
        if any(parent.is_symlink() for parent in path.parents):
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            path.rename(outside.parent / f"put-away-{path.name}")
        path.symlink_to(target)
        yield str(path)


def edit_store(choose: random.Random, run_id: str, names: dict[str, object]) -> Iterator[str]:
    def value() -> str:
        chosen = choose.choice(HOSTILE).format(**names)
        edited.append(chosen)
        return chosen

    edited: list[str] = []
    if choose.random() < 0.7:
        set_param(run_id, "experiment.name", value())
    if choose.random() < 0.5:
        set_param(run_id, "experiment.output_dir", value())
    if choose.random() < 0.7:
        set_artifact_uri(run_id, value())
    if choose.random() < 0.5:
        (model,) = models_of(run_id)
        edit("UPDATE logged_models SET artifact_location = ? WHERE model_id = ?", value(), model)
    if choose.random() < 0.3:
        edit("UPDATE model_versions SET storage_location = ?", value())
    if choose.random() < 0.3:
        edit("UPDATE runs SET name = ? WHERE run_uuid = ?", value(), run_id)
    yield from edited


@pytest.mark.parametrize("seed", range(16))
def test_nothing_outside_is_read_or_changed(
    seed: int, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    choose = random.Random(seed)
    run_id, champion = make_run("one", 0.5), make_run("best", 0.9)
    register(champion)
    outside = make_outside(here.parent / "outside", run_id)
    names = {"outside": outside, "here": here, "run": run_id, "champion": champion}
    made = [*edit_store(choose, run_id, names), *place_links(choose, outside, run_id)]
    make_old(OUTPUT)
    best = RunFolders(OUTPUT, "best")
    others = [outside, best.results, best.logs, place_of(champion)]
    before = snapshot(*others)
    for main, options in COMMANDS:
        assert main(options) in (0, 1, 2)
        said = "".join(capsys.readouterr())
        assert CANARY not in said, (options, made)
        assert snapshot(*others) == before, (options, made)
        if Path("report.html").exists():
            page = Path("report.html").read_text()
            assert CANARY not in page, (options, made)
            assert champion in page
            Path("report.html").unlink()


def test_a_report_leaves_out_what_is_not_the_runs_own(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    champion = make_run("best", 0.9)
    register(champion)
    outside = make_outside(here.parent / "outside", champion)
    set_artifact_uri(champion, f"file://{outside}")
    assert report.main([]) == 0
    assert f"run {champion}: the store says that its files are at file://{outside}" in capsys.readouterr().err
    assert CANARY not in Path("report.html").read_text()


def test_sync_refuses_what_is_not_the_runs_own(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine, other = make_run("one", 0.5), make_run("best", 0.9)
    outside = make_outside(here.parent / "outside", mine)
    journal = OUTPUT / "one/undelivered/journal.jsonl"
    journal.parent.mkdir()

    def refused(*lines: str) -> str:
        journal.write_text("".join(f"{line}\n" for line in lines))
        before = snapshot(outside, here / "mlruns", journal.parent)
        assert store_command.main(["sync", "outputs/one"]) != 0
        after = snapshot(outside, here / "mlruns", journal.parent)
        assert {path: after[path] for path in before} == before
        return capsys.readouterr().err

    mine_header = f'{{"run_id": "{mine}", "store": "s"}}'
    assert f"belongs to run {mine}, and its journal to run {other}" in refused(
        mine_header.replace(mine, other)
    )
    item = '{"number": 1, "kind": "artifact", "content": {"name": "NAME", "folder": "FOLDER"}}'
    bad = [
        ("../../../../outside/config.yaml", ""),
        (str(outside / "MLmodel"), ""),
        ("x", "../../x"),
        ("..", ""),
    ]
    for name, folder in bad:
        line = item.replace("NAME", name).replace("FOLDER", folder)
        assert "names a file outside it" in refused(mine_header, line)
    set_artifact_uri(mine, str(outside))
    assert "which is not its own folder" in refused(mine_header)
    journal.unlink()
    journal.symlink_to(outside / "undelivered/journal.jsonl")
    assert store_command.main(["sync", "outputs/one"]) == 2
    assert "nothing is delivered through one" in capsys.readouterr().err
    assert store_command.main(["doctor"]) == 1
    assert CANARY not in "".join(capsys.readouterr())
