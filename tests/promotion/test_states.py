"""YAML, registry and history in every state, and what `promote`, `--rollback` and `--check` make of it."""

from pathlib import Path

import mlflow
import pytest
import yaml

from src.promote import main
from tests.promotion.conftest import actions, aliases, champion_run, history, snapshot, version_count
from tests.promotion.runs import Made, make_run

pytestmark = pytest.mark.usefixtures("sqlite")

RECORD = Path("config/best_hparams/resnet18_A.yaml")
HISTORY = Path("config/best_hparams/history.jsonl")
BACK = ["--rollback", "--model", "resnet18", "--modality", "A"]
HAND_MADE = "model:\n  name: resnet18\ndata:\n  modalities: [A]\nbest_metrics:\n  val_auc: {auc}\n"


@pytest.fixture
def two(sqlite: Path, npz: Path) -> tuple[Made, Made]:
    """Versions 1 and 2, the second champion."""
    assert sqlite.exists()
    first = make_run(npz, 0.5, start_time=1_000)
    assert main([]) == 0
    second = make_run(npz, 1.0, start_time=2_000)
    assert main([]) == 0
    return first, second


def set_champion(version: int) -> None:
    mlflow.MlflowClient().set_registered_model_alias("resnet18_A", "champion", str(version))


def register_by_hand(made: Made, **tags: str) -> None:
    client = mlflow.MlflowClient()
    run = client.get_run(made.run_id)
    assert run.outputs is not None
    source = f"models:/{run.outputs.model_outputs[0].model_id}"
    client.create_model_version("resnet18_A", source, made.run_id, tags=tags)


def agree() -> bool:
    return main(["--check"]) == 0


@pytest.mark.usefixtures("two")
def test_a_missing_yaml_is_restored_to_the_byte() -> None:
    before, told = RECORD.read_bytes(), actions()
    RECORD.unlink()
    assert not agree()
    assert main([]) == 0
    assert RECORD.read_bytes() == before
    assert actions() == told
    assert agree()


@pytest.mark.usefixtures("npz")
def test_an_older_yaml_is_restored_from_the_champion(npz: Path) -> None:
    make_run(npz, 0.5)
    assert main([]) == 0
    old = RECORD.read_bytes()
    make_run(npz, 1.0)
    assert main([]) == 0
    new = RECORD.read_bytes()
    RECORD.write_bytes(old)
    assert not agree()
    assert main([]) == 0
    assert RECORD.read_bytes() == new
    assert aliases() == {"champion": 2, "previous": 1}
    assert version_count() == 2
    assert agree()


def test_a_forced_champion_is_not_undone_by_an_older_better_yaml(npz: Path) -> None:
    """Killed between alias and YAML: the promotion's time decides, not the AUC."""
    good = make_run(npz, 1.0)
    assert main([]) == 0
    old = RECORD.read_bytes()
    mlflow.MlflowClient().delete_run(good.run_id)
    worse = make_run(npz, 0.5)
    assert main(["--force"]) == 0
    RECORD.write_bytes(old)
    assert main([]) == 0
    assert champion_run() == worse.run_id
    assert yaml.safe_load(RECORD.read_text())["mlflow"]["run_id"] == worse.run_id


@pytest.mark.usefixtures("two")
def test_a_champion_moved_by_hand_to_a_worse_version_is_moved_back() -> None:
    before = RECORD.read_bytes()
    set_champion(1)
    assert not agree()
    assert main([]) == 0
    assert aliases() == {"champion": 2, "previous": 1}
    assert RECORD.read_bytes() == before
    assert agree()


def test_a_better_version_made_champion_by_hand_is_taken_over(npz: Path) -> None:
    make_run(npz, 0.5)
    assert main([]) == 0
    better = make_run(npz, 1.0)
    register_by_hand(better)
    set_champion(2)
    assert not agree()
    assert main([]) == 0
    assert aliases() == {"champion": 2, "previous": 1}
    assert version_count() == 2
    assert yaml.safe_load(RECORD.read_text())["mlflow"]["version"] == 2
    assert actions() == [("promotion", 1), ("restore", 2)]
    assert history()[-1].val_auc_low is not None
    assert agree()


@pytest.mark.usefixtures("two")
def test_no_champion_the_yaml_says_which() -> None:
    mlflow.MlflowClient().delete_registered_model_alias("resnet18_A", "champion")
    assert not agree()
    assert main([]) == 0
    assert aliases() == {"champion": 2, "previous": 1}
    assert actions() == [("promotion", 1), ("promotion", 2)]
    assert agree()


def test_an_empty_registry_is_filled_from_the_yaml(two: tuple[Made, Made]) -> None:
    mlflow.MlflowClient().delete_registered_model("resnet18_A")
    assert not agree()
    assert main([]) == 0
    assert champion_run() == two[1].run_id
    assert aliases() == {"champion": 1}
    assert agree()


@pytest.mark.usefixtures("two")
def test_a_corrupt_yaml_is_left_alone_and_the_others_go_on(
    npz: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(npz, 0.7, modality="P")
    for text in ("data: [", "a: 1", "best_metrics: {val_auc: high}\ndata: {modalities: [A]}", "- 1"):
        RECORD.write_text(text)
        assert not agree()
        assert main([]) == 1
        assert "resnet18_A.yaml" in capsys.readouterr().out
        assert RECORD.read_text() == text
    assert aliases() == {"champion": 2, "previous": 1}
    assert aliases("resnet18_P") == {"champion": 1}


@pytest.mark.usefixtures("two")
def test_an_edited_yaml_is_restored_and_the_edit_kept_in_the_history() -> None:
    before = RECORD.read_text()
    edited = before.replace("learning_rate: 0.001", "learning_rate: 0.5")
    assert edited != before
    RECORD.write_text(edited)
    assert not agree()
    assert main([]) == 0
    assert RECORD.read_text() == before
    assert history()[-1].replaced_text == edited
    assert agree()


def test_an_edited_number_wins_nothing(two: tuple[Made, Made]) -> None:
    values = yaml.safe_load(RECORD.read_text())
    values["best_metrics"]["val_auc"] = 0.999
    RECORD.write_text(yaml.safe_dump(values))
    assert main([]) == 0
    assert yaml.safe_load(RECORD.read_text())["best_metrics"]["val_auc"] == two[1].val_auc


def test_a_hand_made_yaml_is_a_champion(npz: Path, folder: Path) -> None:
    make_run(npz, 0.5)
    RECORD.parent.mkdir(parents=True)
    RECORD.write_text(HAND_MADE.format(auc=0.7))
    before = snapshot(folder)
    assert main([]) == 0
    assert snapshot(folder) == before
    assert agree()
    better = make_run(npz, 1.0)
    assert main([]) == 0
    assert champion_run() == better.run_id
    assert history()[0].replaced_text == HAND_MADE.format(auc=0.7)
    assert agree()


def test_an_old_hand_made_yaml_gives_way_to_the_champion(two: tuple[Made, Made]) -> None:
    RECORD.write_text(HAND_MADE.format(auc=0.99))
    assert main([]) == 0
    assert yaml.safe_load(RECORD.read_text())["mlflow"]["run_id"] == two[1].run_id
    assert history()[-1].replaced_text == HAND_MADE.format(auc=0.99)


@pytest.mark.usefixtures("two")
def test_a_newer_better_hand_made_yaml_must_be_beaten(npz: Path, folder: Path) -> None:
    RECORD.write_text(HAND_MADE.format(auc=0.99) + "updated_at: 2100-01-01\n")
    make_run(npz, 0.7)
    before = snapshot(folder)
    assert main([]) == 0
    assert snapshot(folder) == before


def test_rollback_puts_alias_and_yaml_back_together(two: tuple[Made, Made]) -> None:
    assert main(BACK) == 0
    assert aliases() == {"champion": 1}
    assert yaml.safe_load(RECORD.read_text())["mlflow"]["run_id"] == two[0].run_id
    assert actions()[-1] == ("rollback", 1)
    assert agree()
    assert main(BACK) == 2
    assert actions()[-1] == ("rollback", 1)


def test_a_version_rolled_back_stays_out(
    two: tuple[Made, Made], npz: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(BACK) == 0
    before = snapshot(folder)
    assert main([]) == 0
    assert "1 rolled back" in capsys.readouterr().out
    assert snapshot(folder) == before
    other = make_run(npz, 0.7)  # better than version 1, not than version 2
    assert main([]) == 0
    assert champion_run() == other.run_id
    assert main([]) == 0
    assert champion_run() == other.run_id
    assert main(["--force"]) == 0
    assert champion_run() == two[1].run_id
    assert version_count() == 3
    assert aliases() == {"champion": 2, "previous": 3}
    assert main([]) == 0
    assert champion_run() == two[1].run_id
    assert agree()


def test_rollback_walks_back_through_the_chain(two: tuple[Made, Made], npz: Path) -> None:
    third = make_run(npz, 1.0, claim=0.95)
    assert main(["--no-verify"]) == 0
    assert champion_run() == third.run_id
    assert main(BACK) == 0
    assert aliases() == {"champion": 2, "previous": 1}
    assert main(BACK) == 0
    assert aliases() == {"champion": 1}
    assert champion_run() == two[0].run_id
    assert main(BACK) == 2
    assert agree()


def test_rollback_without_anything_to_roll_back(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(BACK) == 2
    assert "there is no champion to roll back" in capsys.readouterr().err


@pytest.mark.usefixtures("two")
def test_a_dry_rollback_changes_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = snapshot(folder)
    assert main([*BACK, "--dry-run"]) == 0
    assert "champion is version 1 again, version 2 is taken back (dry run" in capsys.readouterr().out
    assert snapshot(folder) == before


@pytest.mark.usefixtures("two")
def test_a_lost_history_is_found_and_mended(capsys: pytest.CaptureFixture[str]) -> None:
    lines = HISTORY.read_text().splitlines()
    HISTORY.write_text(lines[0] + "\n")
    assert not agree()
    assert main([]) == 0
    assert HISTORY.read_text().splitlines() == lines
    HISTORY.write_text("\n".join([lines[0], "{damaged", lines[1]]) + "\n")
    assert main([]) == 0
    assert "history.jsonl, line 2: not an event" in capsys.readouterr().err


@pytest.mark.usefixtures("two")
def test_check_finds_what_a_race_leaves(capsys: pytest.CaptureFixture[str]) -> None:
    client = mlflow.MlflowClient()
    version = client.get_model_version("resnet18_A", "2")
    assert version.source is not None
    client.create_model_version("resnet18_A", version.source, version.run_id)
    assert main(["--check"]) == 1
    captured = capsys.readouterr()
    assert f"run {version.run_id} has 2 versions" in captured.out
    assert "not all agree: resnet18_A" in captured.err
    assert main(["--check", "--model", "swin_t"]) == 0


def test_check_before_anything(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check"]) == 0
    assert "nothing was promoted yet" in capsys.readouterr().out


def test_a_deleted_champion_run_keeps_its_place(two: tuple[Made, Made], npz: Path) -> None:
    mlflow.MlflowClient().delete_run(two[1].run_id)
    make_run(npz, 0.7)
    assert main([]) == 0
    assert aliases() == {"champion": 2, "previous": 1}


def test_a_version_rolled_back_stays_out_when_it_is_deleted(two: tuple[Made, Made]) -> None:
    assert main(BACK) == 0
    mlflow.MlflowClient().delete_model_version("resnet18_A", "2")
    assert main([]) == 0
    assert champion_run() == two[0].run_id
    assert main(["--force"]) == 0
    assert champion_run() == two[1].run_id
    assert main([]) == 0
    assert champion_run() == two[1].run_id
    assert agree()


def test_a_champion_that_cannot_be_restored_can_be_replaced(
    npz: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = make_run(npz, 0.5)
    assert main([]) == 0
    mlflow.MlflowClient().delete_run(first.run_id)
    RECORD.unlink()
    make_run(npz, 0.3)
    for options in ([], ["--dry-run"]):
        assert main(options) == 1
        assert f"run {first.run_id} is deleted" in capsys.readouterr().out
    better = make_run(npz, 1.0)
    assert main([]) == 0
    assert champion_run() == better.run_id
    assert agree()


@pytest.mark.usefixtures("two")
def test_previous_survives_a_hand_made_yaml(npz: Path) -> None:
    RECORD.write_text(HAND_MADE.format(auc=0.9) + "updated_at: 2100-01-01\n")
    make_run(npz, 1.0, claim=0.95)
    assert main(["--no-verify"]) == 0
    assert aliases() == {"champion": 3, "previous": 2}


@pytest.mark.usefixtures("two")
def test_a_gain_of_the_champion_itself_keeps_a_previous(two: tuple[Made, Made]) -> None:
    mlflow.MlflowClient().log_metric(two[1].run_id, "best_val_auc", 0.95, step=2)
    assert main(["--no-verify"]) == 0
    assert aliases() == {"champion": 2, "previous": 1}
    assert mlflow.MlflowClient().get_model_version("resnet18_A", "2").tags["val_auc"] == "0.95"


@pytest.mark.usefixtures("two")
def test_what_others_wrote_is_no_traceback(npz: Path, capsys: pytest.CaptureFixture[str]) -> None:
    client = mlflow.MlflowClient()
    make_run(npz, 0.7, modality="P")
    client.set_model_version_tag("resnet18_A", "2", "val_auc", "0,91")
    assert main([]) == 1
    assert "the val AUC of version 2, the champion, is unknown" in capsys.readouterr().out
    assert aliases("resnet18_P") == {"champion": 1}
    client.set_model_version_tag("resnet18_A", "2", "val_auc", "0.5")
    client.set_model_version_tag("resnet18_A", "2", "promotion", '{"time": "yesterday"}')
    assert main([]) == 0  # no event of ours: what counts is what its run says
    assert agree()
    HISTORY.write_bytes(b"\xff\xfe\n" + HISTORY.read_bytes())
    assert main([]) == 0
    make_run(npz, 1.0, claim=0.95)
    assert main(["--no-verify"]) == 0
    assert HISTORY.read_bytes().startswith(b"\xff\xfe\n")


def test_a_champion_made_by_hand_is_compared_on_its_run_s_data(
    npz: Path, other_npz: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = make_run(other_npz, 0.5, start_time=1_000)
    mlflow.MlflowClient().create_registered_model("resnet18_A")
    register_by_hand(theirs, val_auc="0.1")
    set_champion(1)
    make_run(npz, 1.0, start_time=2_000)
    assert main([]) == 0
    assert champion_run() == theirs.run_id
    assert "the champion is from other data" in capsys.readouterr().out


def test_a_champion_made_by_hand_must_keep_its_claim_too(
    npz: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(npz, 0.5)
    assert main([]) == 0
    liar = make_run(npz, 0.7, claim=0.99)
    register_by_hand(liar)
    set_champion(2)
    before = RECORD.read_bytes()
    assert main([]) == 1
    assert "claims a val AUC of 0.990000" in capsys.readouterr().out
    assert RECORD.read_bytes() == before


@pytest.mark.usefixtures("two")
def test_half_a_yaml_is_no_record_and_is_swept() -> None:
    left = RECORD.with_name(".tmp-abc.yaml")
    left.write_text(RECORD.read_text()[:50])
    assert agree()
    RECORD.unlink()
    assert main([]) == 0
    assert not left.exists()


@pytest.mark.usefixtures("two")
def test_check_knows_what_only_the_history_tells(capsys: pytest.CaptureFixture[str]) -> None:
    RECORD.unlink()
    mlflow.MlflowClient().delete_registered_model("resnet18_A")
    assert not agree()
    assert "version 2 was promoted, and the registry has no champion" in capsys.readouterr().out
