"""What a store says never makes ``src.cleanup`` delete what is not the run's own."""

import shutil
from pathlib import Path

import mlflow
import pytest

from src import cleanup
from src.retention.cleaning import clean, survey
from src.retention.plan import Rules
from src.training.run_folder import RunFolders
from tests.hostile_stores import (
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

pytestmark = pytest.mark.slow

ALL = ["--keep-days", "0", "--keep-best", "0"]


class Scene:
    """A run that is to go, the champion, and a tree outside."""

    def __init__(self, folder: Path) -> None:
        self.run_id, self.champion = make_run("one", 0.5), make_run("best", 0.9)
        register(self.champion)
        self.outside = make_outside(folder / "outside", self.run_id)
        best = RunFolders(OUTPUT, "best")
        models = [place_of(self.champion).parent.parent / "models" / m for m in models_of(self.champion)]
        self.others = [self.outside, best.results, best.logs, place_of(self.champion), *models]
        self.before = snapshot(*self.others)

    def check(self) -> None:
        assert snapshot(*self.others) == self.before
        assert mlflow.MlflowClient().get_run(self.champion).info.lifecycle_stage == "active"


@pytest.fixture
def scene(folder: Path, sqlite: Path) -> Scene:
    assert sqlite.exists()
    return Scene(folder)


NAMES = ["{outside}", "../outside", "../..", "", ".", "..", "x/../../outside", "best", "one/../best", "logs"]
NAMES += ["cache", "a\0b", "/", "~", "n" * 3000, "link", "linked", "*", "best/"]


def make_runs(count: int) -> list[str]:
    return [make_run(f"run{number}", 0.1) for number in range(count)]


@pytest.mark.parametrize("whole", [[], ["--runs"]], ids=["checkpoints", "runs"])
def test_hostile_names_delete_nothing(
    scene: Scene, whole: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (OUTPUT / "link").symlink_to(scene.outside)
    (OUTPUT / "linked").symlink_to("best")
    (OUTPUT / "logs/link").symlink_to(scene.outside)
    runs = make_runs(len(NAMES))
    shutil.rmtree(OUTPUT / "one")
    mine = snapshot(OUTPUT)
    for run_id, name in zip(runs, NAMES, strict=True):
        set_param(run_id, "experiment.name", name.format(outside=scene.outside))
    assert cleanup.main([*ALL, *whole, "--apply"]) == 0
    said = capsys.readouterr().out.splitlines()
    for run_id in runs:
        assert [line for line in said if line.startswith("left alone   ") and run_id in line], run_id
        assert not (place_of(run_id) / "checkpoints").exists()  # what is certainly its own goes
    scene.check()
    if whole:
        shutil.rmtree(OUTPUT / "logs/one", ignore_errors=True)
    assert {path: state for path, state in snapshot(OUTPUT).items() if "/one" not in path} == {
        path: state for path, state in mine.items() if "/one" not in path
    }


def test_hostile_output_folders_delete_nothing(scene: Scene) -> None:
    hostile = [str(scene.outside.parent), "/", "~", "~nobody", "a\0b", "../outside", "o" * 3000]
    for run_id, output_dir in zip(make_runs(len(hostile)), hostile, strict=True):
        set_param(run_id, "experiment.output_dir", output_dir)
        set_param(run_id, "experiment.name", "outside")
    assert cleanup.main([*ALL, "--runs", "--apply"]) == 0
    scene.check()


def test_a_run_with_files_in_another_output_folder_is_left_whole(
    scene: Scene, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    OUTPUT.rename(folder / "elsewhere")
    set_param(scene.run_id, "experiment.output_dir", str(folder / "elsewhere"))
    assert cleanup.main([*ALL, "--runs", "--apply"]) == 0
    assert f"its files are in {folder}/elsewhere; name that with --output-dir" in capsys.readouterr().out
    assert (folder / "elsewhere/one/checkpoints/latest.pth").exists()
    assert cleanup.main([*ALL, "--runs", "--apply", "--output-dir", "elsewhere"]) == 0
    assert not (folder / "elsewhere/one").exists()
    assert (folder / "elsewhere/best/checkpoints/latest.pth").exists()


URIS = ["{outside}", "file://{outside}", "file://localhost{outside}", "file:///", "/", "", ".", "a\0b", "..."]
URIS += [
    "{mlruns}/{run}/../../../outside",
    "{mlruns}/{champion}/artifacts",
    "file://{mlruns}/{champion}/artifacts",
]
URIS += [
    "{mlruns}",
    "{mlruns}/{run}",
    "file://host{outside}",
    "s3://bucket/",
    "http://127.0.0.1:1/x",
    "u" * 180,
]


@pytest.mark.parametrize("whole", [[], ["--runs"]], ids=["checkpoints", "runs"])
def test_hostile_artifact_uris_delete_nothing(
    scene: Scene, whole: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {"outside": scene.outside, "mlruns": folder / "mlruns/0", "champion": scene.champion}
    runs = make_runs(len(URIS))
    for run_id, uri in zip(runs, URIS, strict=True):
        set_artifact_uri(run_id, uri.format(**names, run=run_id))
    assert cleanup.main([*ALL, *whole, "--apply"]) == 0
    said = capsys.readouterr().out
    for number, run_id in enumerate(runs):
        assert f"left alone   run {run_id}: the store says that its files are at" in said
        assert (place_of(run_id) / "checkpoints").exists()
        assert not (OUTPUT / f"run{number}/checkpoints").exists()
    scene.check()


def test_a_hostile_place_of_a_model_deletes_nothing(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    (model,) = models_of(scene.run_id)
    edit("UPDATE logged_models SET artifact_location = ? WHERE model_id = ?", str(scene.outside), model)
    assert cleanup.main([*ALL, "--runs", "--apply"]) == 0
    assert f"left alone   logged model {model}: the store says" in capsys.readouterr().out
    scene.check()


def test_another_runs_model_in_the_outputs_stays(scene: Scene) -> None:
    (model,) = models_of(scene.champion)
    edit("UPDATE inputs SET destination_id = ? WHERE source_id = ?", model, scene.run_id)
    edit("UPDATE model_versions SET run_id = ''")
    edit("UPDATE model_versions SET source = 'models:/m-gone'")
    set_param(scene.champion, "experiment.name", "best")
    assert cleanup.main([*ALL, "--keep-best", "1", "--runs", "--apply"]) == 0
    scene.check()
    assert mlflow.MlflowClient().get_logged_model(model).model_id == model


@pytest.mark.parametrize("at", ["{run}", "{run}/artifacts", "{run}/artifacts/checkpoints"])
def test_links_in_the_store_are_not_followed(scene: Scene, folder: Path, at: str) -> None:
    place = folder / "mlruns/0" / at.format(run=scene.run_id)
    shutil.rmtree(place)
    place.symlink_to(scene.outside)
    cleanup.main([*ALL, "--apply"])
    scene.check()
    cleanup.main([*ALL, "--runs", "--apply"])
    scene.check()


def test_links_among_leftovers_are_not_followed(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    (OUTPUT / "one/.tmp-999999999-a").symlink_to(scene.outside)
    (OUTPUT / "one/.tmp-999999999-b").symlink_to(scene.outside / "config.yaml")
    (OUTPUT / "cache").symlink_to(scene.outside / "cache")
    make_old(OUTPUT / "one")
    assert cleanup.main([*ALL, "--apply"]) == 0
    assert "outputs/cache/packs: reached through a link" in capsys.readouterr().out
    scene.check()
    assert not [path for path in OUTPUT.rglob(".tmp-*") if path.is_symlink()]


def swap_for_link(scene: Scene, place: Path) -> None:
    shutil.rmtree(place)
    place.symlink_to(scene.outside)


def swap_owner(scene: Scene, place: Path) -> None:
    (place / "run_id").write_text(scene.champion)


@pytest.mark.parametrize("swap", [swap_for_link, swap_owner])
def test_the_plan_is_checked_again_before_anything_goes(
    scene: Scene, swap: object, capsys: pytest.CaptureFixture[str]
) -> None:
    found = survey(OUTPUT, Rules(0, 0, runs=True))
    place = OUTPUT / "one"
    assert place.absolute() in [path for removal in found.removals for path in removal.paths]
    assert callable(swap)
    swap(scene, place)
    before = snapshot(place)
    clean(found.removals)
    assert "no longer this run's own" in capsys.readouterr().err
    assert snapshot(place) == before
    scene.check()


def test_two_runs_of_one_name_do_not_share_a_fate(
    folder: Path, sqlite: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The name was used again once the folders of the first run were gone; the second is the champion."""
    assert sqlite.exists()
    first = make_run("same", 0.5)
    shutil.rmtree(OUTPUT)
    second = make_run("same", 0.9)
    register(second)
    others = [folder / "outputs", place_of(second)]
    before = snapshot(*others)
    assert cleanup.main([*ALL, "--runs"]) == 0
    said = capsys.readouterr().out
    assert f"left alone   outputs/same: it says that it is of run {second}, and not {first}" in said
    assert f"path         mlruns/0/{first}/artifacts" in said
    assert "path         outputs" not in said
    assert cleanup.main([*ALL, "--apply"]) == 0
    assert snapshot(*others) == before
    assert cleanup.main([*ALL, "--runs", "--apply"]) == 0
    assert snapshot(*others) == before
    assert [run.info.run_id for run in mlflow.MlflowClient().search_runs(["0"])] == [second]


@pytest.mark.usefixtures("sqlite")
@pytest.mark.parametrize("has_checkpoint", [True, False])
def test_folders_of_an_earlier_release(has_checkpoint: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """They have no record: a checkpoint says whose they are, and without one nothing does."""
    run_id = make_run("old", 0.5, is_signed=False, has_checkpoint=has_checkpoint)
    assert cleanup.main([*ALL, "--runs", "--apply"]) == 0
    assert (OUTPUT / "old").exists() == (OUTPUT / "logs/old").exists() == (not has_checkpoint)
    said = f"left alone   outputs/old: nothing in it says that it is of run {run_id}"
    assert (said in capsys.readouterr().out) == (not has_checkpoint)


def test_what_a_user_has_deleted_can_still_be_restored(scene: Scene) -> None:
    """`mlflow gc` would have erased it with the run that goes."""
    client = mlflow.MlflowClient()
    number = client.create_experiment("trash")
    client.create_run(number)
    model = client.create_logged_model("0", "mine")
    client.delete_experiment(number)
    client.delete_logged_model(model.model_id)
    assert cleanup.main([*ALL, "--runs", "--apply"]) == 0
    with pytest.raises(mlflow.MlflowException, match="not found"):
        client.get_run(scene.run_id)
    client.restore_experiment(number)
    assert len(client.search_runs([number])) == 1
    edit("UPDATE logged_models SET lifecycle_stage = 'active' WHERE model_id = ?", model.model_id)
    assert client.get_logged_model(model.model_id).name == "mine"
    scene.check()


def test_a_run_whose_model_is_registered_under_another_run_stays(scene: Scene) -> None:
    (model,) = models_of(scene.run_id)
    edit("UPDATE model_versions SET source = ?", f"models:/{model}")
    edit("UPDATE model_versions SET run_id = ?", scene.champion)
    before = snapshot(OUTPUT / "one", place_of(scene.run_id))
    assert cleanup.main([*ALL, "--runs", "--apply"]) == 0
    assert snapshot(OUTPUT / "one", place_of(scene.run_id)) == before
