"""What a store says never makes ``src.cleanup`` delete what is not the run's own."""

import shutil
from pathlib import Path

import mlflow
import pytest

from src import cleanup
from src.retention.cleaning import clean, survey
from src.retention.plan import Rules
from src.training.folders import RunFolders
from tests.hostile import (
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
from tests.servers import make_store, place_store

ALL = ["--keep-days", "0", "--keep-best", "0"]


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("empty"))


@pytest.fixture
def store(folder: Path, empty_store: Path) -> Path:
    return place_store(empty_store, folder / "mlflow.db", f"{folder}/mlruns/0")


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
def scene(folder: Path, store: Path) -> Scene:
    assert store.exists()
    return Scene(folder)


NAMES = ["{outside}", "../outside", "../..", "", ".", "..", "x/../../outside", "best", "one/../best", "logs"]
NAMES += ["cache", "a\0b", "/", "~", "n" * 3000, "link", "linked", "*", "best/"]


@pytest.mark.parametrize("whole", [[], ["--runs"]], ids=["checkpoints", "runs"])
@pytest.mark.parametrize("name", NAMES, ids=[repr(name[:20]) for name in NAMES])
def test_a_hostile_name_deletes_nothing(
    scene: Scene, name: str, whole: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (OUTPUT / "link").symlink_to(scene.outside)
    (OUTPUT / "linked").symlink_to("best")
    (OUTPUT / "logs/link").symlink_to(scene.outside)
    mine = snapshot(OUTPUT)
    set_param(scene.run_id, "experiment.name", name.format(outside=scene.outside))
    assert cleanup.main([*ALL, *whole, "--apply"]) == 0
    assert "left alone   " in capsys.readouterr().out
    scene.check()
    assert snapshot(OUTPUT) == mine
    assert not (place_of(scene.run_id) / "checkpoints").exists()  # what is certainly its own goes


@pytest.mark.parametrize("output_dir", ["{parent}", "/", "~", "~nobody", "a\0b", "../outside", "o" * 3000])
def test_a_hostile_output_folder_deletes_nothing(scene: Scene, output_dir: str) -> None:
    set_param(scene.run_id, "experiment.output_dir", output_dir.format(parent=scene.outside.parent))
    set_param(scene.run_id, "experiment.name", "outside")
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
@pytest.mark.parametrize("uri", URIS)
def test_a_hostile_artifact_uri_deletes_nothing(
    scene: Scene, uri: str, whole: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {"outside": scene.outside, "mlruns": folder / "mlruns/0"}
    set_artifact_uri(scene.run_id, uri.format(**names, run=scene.run_id, champion=scene.champion))
    assert cleanup.main([*ALL, *whole, "--apply"]) == 0
    assert "which is not its own folder" in capsys.readouterr().out
    scene.check()
    assert place_of(scene.run_id).exists()
    assert not (OUTPUT / "one/checkpoints").exists()


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
    folder: Path, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The name was used again once the folders of the first run were gone; the second is the champion."""
    assert store.exists()
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


@pytest.mark.usefixtures("store")
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
