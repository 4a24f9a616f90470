"""The command on real runs in MLflow's default store."""

import os
import shutil
from pathlib import Path

import mlflow
import pytest
import yaml

from src.promote import main
from src.promotion.history import Group
from src.utils.config import Config
from src.utils.io import sha256
from tests.images import write_folder
from tests.promotion.conftest import actions, aliases, champion_run, history, snapshot, version_count
from tests.promotion.runs import make_run

pytestmark = pytest.mark.usefixtures("sqlite")

RECORD = Path("config/best_hparams/resnet18_A.yaml")
HISTORY = RECORD.with_name("history.jsonl")


def test_the_best_run_becomes_champion(npz: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(npz, 0.3)
    best = make_run(npz, 1.0)
    make_run(npz, 0.7)
    assert main([]) == 0
    out = capsys.readouterr().out
    assert f"{best.val_auc:.4f} (" in out
    assert "verified by logged model on the validation data" in out
    assert aliases() == {"champion": 1}
    assert champion_run() == best.run_id
    assert actions() == [("promotion", 1)]


def test_the_yaml_is_a_config_with_the_results(npz: Path) -> None:
    best = make_run(npz, 1.0, modality="A+P")
    assert main([]) == 0
    path = Path("config/best_hparams/resnet18_A+P.yaml")
    config = Config.from_file(path)
    assert (config.model.name, config.modality, config.experiment.name) == ("resnet18", "A+P", None)
    values = yaml.safe_load(path.read_text())
    assert values["best_metrics"]["val_auc"] == best.val_auc
    assert list(values["best_metrics"]) == [
        "epoch",
        "val_auc",
        "val_accuracy",
        "val_sensitivity",
        "val_specificity",
        "timestamp",
    ]
    assert values["best_metrics"]["timestamp"] == "2023-11-14T22:13:20+00:00"
    assert values["test_metrics"] == {"accuracy": 0.7, "auc": 0.75, "sensitivity": 0.6, "specificity": 0.8}
    assert values["mlflow"] == {
        "run_id": best.run_id,
        "experiment": "Default",
        "registered_model": "resnet18_A+P",
        "version": 1,
    }


def test_the_version_says_all(npz: Path) -> None:
    best = make_run(npz, 1.0)
    assert main([]) == 0
    version = mlflow.MlflowClient().get_model_version("resnet18_A", "1")
    tags = version.tags
    assert (tags["run_id"], float(tags["val_auc"])) == (best.run_id, best.val_auc)
    assert 0 < float(tags["val_auc_low"]) < best.val_auc < float(tags["val_auc_high"]) < 1
    assert (tags["test_auc"], tags["threshold"]) == ("0.75", "0.5")
    run = mlflow.MlflowClient().get_run(best.run_id)
    assert tags["data.fingerprint"] == run.data.tags["data.fingerprint"]
    assert tags["split.fingerprint"] == run.data.tags["split.fingerprint"]
    assert tags["yaml.sha256"] == sha256(RECORD.read_bytes())
    assert f"Val AUC {best.val_auc:.4f} (95 % interval" in str(version.description)
    loaded = mlflow.pytorch.load_model("models:/resnet18_A@champion")
    assert callable(loaded)


def test_again_changes_nothing(npz: Path, folder: Path) -> None:
    make_run(npz, 1.0)
    assert main([]) == 0
    before = snapshot(folder)
    assert main([]) == 0
    assert snapshot(folder) == before


def test_a_dry_run_changes_nothing(npz: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(npz, 0.7)
    before = snapshot(folder)
    assert main(["--dry-run"]) == 0
    assert "would be promoted" in capsys.readouterr().out
    assert snapshot(folder) == before
    assert main([]) == 0
    make_run(npz, 1.0)
    before = snapshot(folder)
    assert main(["--dry-run"]) == 0
    assert main(["--dry-run", "--rollback", "--model", "resnet18", "--modality", "A"]) == 2
    assert snapshot(folder) == before


def test_a_better_run_replaces_and_the_old_one_is_previous(npz: Path) -> None:
    first = make_run(npz, 0.5)
    assert main([]) == 0
    second = make_run(npz, 1.0)
    assert main([]) == 0
    assert aliases() == {"champion": 2, "previous": 1}
    assert champion_run() == second.run_id
    entry = history()[1]
    assert (entry.replaced_version, entry.replaced_val_auc) == (1, first.val_auc)
    assert entry.difference == pytest.approx(second.val_auc - first.val_auc)
    assert entry.p_value is not None
    assert entry.runs == 2
    worse = make_run(npz, 0.7)
    assert main([]) == 0
    assert version_count() == 2
    assert worse.run_id != champion_run()


def test_a_tie_keeps_the_champion_unless_forced(npz: Path) -> None:
    held = make_run(npz, 1.0, start_time=2_000)
    assert main([]) == 0
    earlier = make_run(npz, 1.0, start_time=1_000)
    assert main([]) == 0
    assert champion_run() == held.run_id
    assert main(["--force"]) == 0
    assert champion_run() == earlier.run_id
    assert history()[-1].forced
    assert main(["--force"]) == 0
    assert version_count() == 2


def test_narrowing(npz: Path) -> None:
    for model in ("resnet18", "swin_t"):
        for modality in ("A", "P"):
            make_run(npz, 0.7, model=model, modality=modality, experiment=f"e_{modality}")
    folder = RECORD.parent
    assert main(["--model", "swin_t", "--modality", "P"]) == 0
    assert [path.name for path in folder.glob("*.yaml")] == ["swin_t_P.yaml"]
    assert main(["--experiment", "e_A"]) == 0
    assert sorted(path.stem for path in folder.glob("*.yaml")) == ["resnet18_A", "swin_t_A", "swin_t_P"]


def test_only_finished_training_runs_with_all_tags_count(
    npz: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(npz, 1.0, status="FAILED")
    make_run(npz, 1.0, status="KILLED")
    make_run(npz, 1.0, status=None)
    make_run(npz, 1.0, tags={"role": "fold"})
    make_run(npz, 1.0, tags={"split.fingerprint": None})
    make_run(npz, 1.0, claim=float("nan"))
    make_run(npz, 1.0, claim=float("inf"))
    deleted = make_run(npz, 1.0)
    mlflow.MlflowClient().delete_run(deleted.run_id)
    assert main([]) == 2
    error = capsys.readouterr().err
    assert "mlflow.db holds 7 runs and none that can be promoted" in error
    good = make_run(npz, 0.3)
    assert main([]) == 0
    assert champion_run() == good.run_id


def test_runs_on_other_data_are_left_out(
    npz: Path, other_npz: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = make_run(other_npz, 1.0, start_time=1_000)
    new = make_run(npz, 0.7, start_time=2_000)
    assert main([]) == 0
    assert "1 other data" in capsys.readouterr().out
    assert champion_run() == new.run_id
    assert history()[0].left_out == 1
    fingerprint = mlflow.MlflowClient().get_run(old.run_id).data.tags["data.fingerprint"]
    assert main(["--data-fingerprint", fingerprint[:10]]) == 0
    assert champion_run() == new.run_id  # the champion is from other data now
    assert main(["--data-fingerprint", fingerprint[:10], "--new-data"]) == 0
    assert champion_run() == old.run_id
    assert main(["--data-fingerprint", "zzz"]) == 2


def test_a_champion_from_other_data_stays_without_new_data(npz: Path, other_npz: Path) -> None:
    held = make_run(other_npz, 0.5, start_time=1_000)
    assert main([]) == 0
    new = make_run(npz, 1.0, start_time=2_000)
    for options in ([], ["--force"]):
        assert main(options) == 0
        assert champion_run() == held.run_id
    assert main(["--new-data"]) == 0
    assert champion_run() == new.run_id
    last = history()[-1]
    assert (last.action, last.new_data, last.reason) == (
        "promotion",
        True,
        "the champion is from other data",
    )
    assert actions() == [("promotion", 1), ("refusal", None), ("promotion", 2)]


def test_a_run_with_an_allowed_leak_needs_force(
    npz: Path, other_npz: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    leaky = make_run(npz, 1.0, tags={"data.allowed_leaks": "3"})
    assert main([]) == 0
    out = capsys.readouterr().out
    assert "refused" in out
    assert "a leak between its splits" in out
    assert not RECORD.exists()
    clean = make_run(npz, 0.5, tags={"data.allowed_leaks": "0"})
    # The newest run says on which data all are compared, but not if it is leaky.
    make_run(other_npz, 1.0, tags={"data.allowed_leaks": "1"})
    assert main([]) == 0
    assert "2 with a leak" in capsys.readouterr().out
    assert champion_run() == clean.run_id
    assert main(["--force", "--data-fingerprint", fingerprint_of(leaky.run_id)]) == 0
    assert champion_run() == leaky.run_id
    # Its score, which the clean run does not reach, protects it from nobody.
    assert main(["--data-fingerprint", fingerprint_of(clean.run_id)]) == 0
    assert champion_run() == clean.run_id
    assert main(["--check"]) == 0


def fingerprint_of(run_id: str) -> str:
    return str(mlflow.MlflowClient().get_run(run_id).data.tags["data.fingerprint"])


def test_a_floor_and_a_test_refuse(npz: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = make_run(npz, 0.7)
    assert main(["--min-auc", "0.99"]) == 0
    assert not RECORD.exists()
    assert actions() == [("refusal", None)]
    assert main(["--significant"]) == 0  # there is nothing yet to gain over
    make_run(npz, 0.7, salt=1.0)
    assert main(["--significant"]) == 0
    assert champion_run() == first.run_id
    assert "the gain is not significant: p = 0." in capsys.readouterr().out
    better = make_run(npz, 1.0)
    assert main(["--significant", "0.05"]) == 0
    assert champion_run() == better.run_id
    last = history()[-1]
    assert last.p_value is not None
    assert last.runs_since == 2  # since the first was promoted: this one, and the one that was refused
    assert 2 * last.p_value < 0.05


def test_p_is_multiplied_by_the_runs_since_the_champion(
    npz: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One gain among five runs since the champion; what was tried before it does not count."""
    make_run(npz, 0.3)
    make_run(npz, 0.7)
    assert main([]) == 0
    for salt in range(4):
        make_run(npz, 0.4, salt=float(salt))
    better = make_run(npz, 1.0)
    capsys.readouterr()
    assert main(["--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "for the best of 5" in shown
    assert main([]) == 0
    last = history()[-1]
    assert (last.runs_since, last.runs, last.run_id) == (5, 7, better.run_id)
    assert last.p_value is not None
    assert f"{last.p_value:.3g}" in shown
    assert f"{min(1, 5 * last.p_value):.3g} for the best of 5" in shown


def test_the_auc_of_the_best_is_corrected_and_kept(npz: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [make_run(npz, 0.5, salt=float(salt)) for salt in range(6)]
    best = max(runs, key=lambda run: run.val_auc)
    assert main([]) == 0
    entry = history()[-1]
    assert entry.run_id == best.run_id
    assert (entry.chosen_among, entry.corrected_with) == (6, 6)
    assert entry.val_auc_corrected is not None
    assert 0.5 < entry.val_auc_corrected < best.val_auc
    selection = {"val_auc_corrected": entry.val_auc_corrected, "chosen_among": 6, "corrected_with": 6}
    text = RECORD.read_text()
    assert yaml.safe_load(text)["selection"] == selection
    told = f"{entry.val_auc_corrected:.4f} corrected, best of 6"
    assert told in capsys.readouterr().out
    version = mlflow.MlflowClient().get_model_version("resnet18_A", "1")
    assert told in str(version.description)
    RECORD.unlink()
    assert main([]) == 0  # from what the registry remembers, the same
    assert RECORD.read_text() == text
    assert told in capsys.readouterr().out
    alone = make_run(npz, 0.7, modality="P")
    assert main([]) == 0
    assert (history()[-1].val_auc_corrected, history()[-1].chosen_among) == (alone.val_auc, 1)


def test_a_claim_that_does_not_hold_is_refused(npz: Path, capsys: pytest.CaptureFixture[str]) -> None:
    liar = make_run(npz, 0.7, claim=0.99)
    assert main([]) == 1
    captured = capsys.readouterr()
    assert f"run {liar.run_id} claims a val AUC of 0.990000" in captured.out
    assert "needs attention, see the lines above: resnet18_A" in captured.err
    assert not RECORD.exists()
    assert actions() == [("refusal", None)]
    assert main(["--no-verify"]) == 0
    assert champion_run() == liar.run_id


def test_a_model_that_is_not_the_one_scored_is_refused(npz: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(npz, 1.0, logged_quality=0.5)
    assert main([]) == 1
    assert "its logged model give 0." in capsys.readouterr().out


def test_edited_predictions_are_refused(npz: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = make_run(npz, 1.0)
    (table,) = Path().glob(f"mlruns/0/{made.run_id}/artifacts/predictions/val.csv")
    lines = table.read_text().splitlines()
    squeezed = [lines[0]]
    for line in lines[1:]:
        *fixed, _, p = line.split(",")
        value = 0.5 + (float(p) - 0.5) * 0.9  # the same order, so the same AUC
        squeezed.append(",".join([*fixed, repr(1 - value), repr(value)]))
    table.write_text("\n".join(squeezed) + "\n")
    assert main([]) == 1
    assert "probabilities on val are not the stored ones" in capsys.readouterr().out


def test_data_that_is_not_at_hand_is_told(
    npz: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    data = Path(shutil.copy(npz, elsewhere / "small.npz"))
    make_run(data, 1.0)
    data.unlink()
    assert main([]) == 0
    captured = capsys.readouterr()
    assert "verified by stored predictions; the data is not available" in captured.out
    assert "small.npz: not found" in captured.err
    assert history()[0].verified == "stored predictions; the data is not available"


def test_no_name_of_an_image_is_recorded(folder: Path) -> None:
    root = write_folder(folder / "d", counts={"train": 8, "val": 60})
    made = make_run(root, 1.0)
    (root / "A/val/pos/CANARY_19520304.png").write_text("no image")
    assert main([]) == 0
    version = mlflow.MlflowClient().get_model_version("resnet18_A", "1")
    assert made.run_id == version.run_id
    assert "CANARY" not in HISTORY.read_text() + str(version.tags) + str(version.description)


def test_a_pickled_model_is_not_loaded(npz: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """MLflow would import the module that it names, before it asks whether pickle is allowed."""
    make_run(npz, 1.0)
    (data,) = folder.glob("mlruns/0/models/m-*/artifacts/data")
    (data / "pickle_module_info.txt").write_text("evil")
    (data / "model.pth").write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")
    (folder / "evil.py").write_text("open('owned', 'w')")
    assert main([]) == 1
    assert "is not in pt2 format" in capsys.readouterr().out
    assert not (folder / "owned").exists()


def test_a_better_run_whose_claim_does_not_hold_stops_no_honest_one(
    npz: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(npz, 0.3)
    assert main([]) == 0
    liar = make_run(npz, 0.5, claim=0.99)
    honest = make_run(npz, 1.0)
    assert main([]) == 1
    assert f"resnet18_A: refused: run {liar.run_id} claims a val AUC of 0.990000" in capsys.readouterr().out
    assert champion_run() == honest.run_id
    assert actions() == [("promotion", 1), ("refusal", None), ("promotion", 2)]


def test_the_same_refusal_is_told_once(npz: Path) -> None:
    make_run(npz, 0.7)
    for _ in range(3):
        for floor in ("0.99", "0.98"):
            assert main(["--min-auc", floor]) == 0
    assert actions() == [("refusal", None), ("refusal", None)]


@pytest.mark.parametrize("what", ["config.yaml", "model", "everything"])
def test_artifacts_that_are_gone(
    npz: Path, folder: Path, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = make_run(npz, 1.0)
    make_run(npz, 0.7, modality="P")
    artifacts = folder / "mlruns/0" / gone.run_id / "artifacts"
    if what == "config.yaml":
        (artifacts / what).unlink()
    if what == "everything":
        shutil.rmtree(artifacts)
    if what != "config.yaml":
        run = mlflow.MlflowClient().get_run(gone.run_id)
        assert run.outputs is not None
        shutil.rmtree(folder / f"mlruns/0/models/{run.outputs.model_outputs[0].model_id}")
    assert main([]) == 1
    out = capsys.readouterr().out
    assert gone.run_id in out or "logged model models:/m-" in out
    assert not RECORD.exists()
    assert Path("config/best_hparams/resnet18_P.yaml").exists()  # the other group went on


@pytest.mark.parametrize("modality", ["../A", "A/B", "A B", "..", "A+", "", "[/x]"])
def test_tags_that_are_no_names(npz: Path, folder: Path, modality: str) -> None:
    make_run(npz, 1.0, tags={"modality": modality})
    make_run(npz, 0.7, modality="P")
    before = {path for path in folder.rglob("*.yaml") if "mlruns" not in path.parts}
    assert main([]) == 1
    after = {path for path in folder.rglob("*.yaml") if "mlruns" not in path.parts}
    assert after - before == {folder / "config/best_hparams/resnet18_P.yaml"}


def test_a_group_named_like_another_is_refused(npz: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """vgg11 on bn_A and vgg11_bn on A would share one file and one registered model."""
    make_run(npz, 0.7, model="vgg11", modality="bn_A")
    assert main([]) == 0
    make_run(npz, 1.0, model="vgg11_bn", modality="A")
    assert main([]) == 1
    assert "the registered model vgg11_bn_A is of vgg11 on bn_A" in capsys.readouterr().out
    Path("config/best_hparams/vgg11_bn_A.yaml").unlink()
    assert main(["--model", "vgg11_bn"]) == 1
    assert version_count("vgg11_bn_A") == 1


def test_bad_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    for options, message in [
        (["--min-auc", "2"], "argument --min-auc: expected a number between 0 and 1, got '2'"),
        (
            ["--significant", "x"],
            "argument --significant: expected a number between 0 and 1, or true, got 'x'",
        ),
        (["--rollback"], "--rollback needs --model and --modality"),
        (["--rollback", "--model", "resnet18", "--modality", "../x"], "would name a file"),
        (["--rollback", "--check"], "exclude each other"),
        (["--force", "maybe"], "expected true or false, got 'maybe'"),
        (["--experiment", "none"], "--experiment none: "),
        ([], "holds 0 runs and none that can be promoted"),
    ]:
        assert main(options) == 2
        assert message in capsys.readouterr().err


def test_no_store_at_all(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "mlflow.db").unlink()
    assert main([]) == 2
    assert "it does not exist yet" in capsys.readouterr().err
    assert not list(folder.iterdir())


def test_a_server_that_is_down(capsys: pytest.CaptureFixture[str]) -> None:
    os.environ["MLFLOW_TRACKING_URI"] = "http://127.0.0.1:9"
    try:
        assert main([]) == 2
    finally:
        del os.environ["MLFLOW_TRACKING_URI"]
    error = capsys.readouterr().err
    assert "http://127.0.0.1:9: the tracking store cannot be opened" in error
    assert "Traceback" not in error


def test_a_folder_that_cannot_be_written(npz: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(npz, 1.0)
    (folder / "config").write_text("a file in the way")
    assert main([]) == 1
    assert (
        "config/best_hparams cannot be written: Not a directory; nothing was changed"
        in capsys.readouterr().out
    )
    assert not mlflow.MlflowClient().search_registered_models()


def test_names() -> None:
    assert Group("resnet18", "A+P").yaml_path == Path("config/best_hparams/resnet18_A+P.yaml")
