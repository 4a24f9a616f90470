"""Probabilities and decisions by the real command: from the registry, a run, a checkpoint."""

import shutil
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from src import predict
from src.data.file_info import FORMAT
from src.evaluation.predictions import read_predictions
from tests import hostile_files as hostile
from tests.images import write_folder, write_npz
from tests.inference.conftest import NAMED, champion

CLASSES = ["p_neg", "p_pos"]


def stored(split: str = "test") -> pd.DataFrame:
    found = read_predictions(Path(f"outputs/first/predictions/{split}.csv"))
    table = pd.DataFrame(found.probabilities, columns=CLASSES, index=list(found.samples))
    return table.assign(label=found.labels)


def predicted(*options: str, status: int = 0) -> pd.DataFrame:
    assert predict.main([*options, "--output", "predictions.csv"]) == status
    return pd.read_csv("predictions.csv")


@pytest.mark.parametrize("kind", ["registry", "version", "run", "checkpoint"])
def test_probabilities_are_the_stored_ones(trained: Path, kind: str) -> None:
    options = {
        "registry": NAMED,
        "version": [*NAMED, "--version", "1"],
        "run": ["--run", str(champion().run_id)],
        "checkpoint": ["--checkpoint", "outputs/first/checkpoints/best_model.pth"],
    }[kind]
    table = predicted(*options, "--input", str(trained / "d/A/test")).set_index("sample")
    expected = stored().loc[table.index]
    assert len(table) == 16
    assert np.abs(table[CLASSES].to_numpy() - expected[CLASSES].to_numpy()).max() < 1e-5
    assert (table["label"].map({"neg": 0, "pos": 1}) == expected["label"]).all()
    import mlflow

    threshold = mlflow.MlflowClient().get_run(str(champion().run_id)).data.metrics["best_threshold"]
    assert ((table["p_pos"] >= threshold) == (table["decision"] == "pos")).all()
    assert list(table.columns) == ["image", "patient", "label", *CLASSES, "decision"]


def test_a_folder_of_a_data_set_gives_the_models_modality_only(trained: Path) -> None:
    write_folder(trained / "d", counts={"test": 4}, modality="P", size=32)
    table = predicted(*NAMED, "--input", "d")
    assert len(table) == 56
    assert table["image"].str.startswith("A/").all()
    assert table["patient"].str.fullmatch(r"[a-z]+\d+").all()


def test_bad_images_are_named_and_left_out(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = trained / "mixed"
    shutil.copytree(trained / "d/A/test/pos", folder)
    (folder / "broken.png").write_bytes(b"\x89PNG nothing")
    table = predicted(*NAMED, "--input", "mixed", status=1)
    assert len(table) == 8
    assert table["label"].isna().all()  # no folder on the way is named as a class
    err = capsys.readouterr().err
    assert "broken.png" in err
    assert "images that cannot be read: 1, named above and left out of predictions.csv" in err


def test_a_manifest_needs_paths_only(trained: Path) -> None:
    files = sorted((trained / "d/A/test/pos").glob("*.png"))
    elsewhere = trained / "elsewhere"
    elsewhere.mkdir()
    lines = [f"{files[0]}", "../d/A/test/neg/testneg00_0.png"]
    (elsewhere / "manifest.csv").write_text("path\n" + "\n".join(lines) + "\n")
    table = predicted(*NAMED, "--input", "elsewhere")
    assert sorted(table["image"]) == sorted(lines)
    assert set(table["sample"]) <= set(stored().index)


def test_file_names_that_are_formulas_are_escaped_in_a_csv_only(trained: Path) -> None:
    image = next((trained / "d/A/test/pos").glob("*.png"))
    folder = trained / "sheet"
    folder.mkdir()
    names = ["+1.png", "-x.png", "=1+1.png", "@x.png", "plain.png"]
    for name in names:
        shutil.copy(image, folder / name)
    table = predicted(*NAMED, "--input", "sheet")
    assert sorted(table["image"]) == ["'+1.png", "'-x.png", "'=1+1.png", "'@x.png", "plain.png"]
    assert predict.main([*NAMED, "--input", "sheet", "--output", "sheet.parquet"]) == 0
    assert sorted(pd.read_parquet("sheet.parquet")["image"]) == names


def test_one_image_and_a_parquet(trained: Path) -> None:
    image = next((trained / "d/A/test/pos").glob("*.png"))
    assert predict.main([*NAMED, "--input", str(image), "--output", "one.parquet"]) == 0
    table = pd.read_parquet("one.parquet")
    assert list(table["image"]) == [image.name]
    assert np.isclose(table["p_pos"][0], stored().loc[table["sample"][0]]["p_pos"], atol=1e-5)


def test_an_npz_with_and_without_labels(trained: Path) -> None:
    write_npz(trained / "small.npz", size=32)
    table = predicted(*NAMED, "--input", "small.npz")
    assert len(table) == 64
    assert table["label"].isna().all()  # its classes are 0 and 1, the model's neg and pos
    with np.load(trained / "small.npz", allow_pickle=False) as arrays:
        np.savez(trained / "plain.npz", images=arrays["test_images"])
    again = predicted(*NAMED, "--input", "plain.npz")
    of_test = table[table["image"].str.startswith("test/")]
    assert list(again["p_pos"]) == list(of_test["p_pos"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([*NAMED, "--version", "7"], "no version 7; versions: 1"),
        (
            ["--model", "resnet18", "--modality", "A"],
            "resnet18_A: not registered, and shufflenet_v2_x0_5_A is",
        ),
        (["--model", "resnet18"], "is named by --model and --modality"),
        ([], "name one model"),
        (["--run", "abc", "--checkpoint", "x.pth"], "name one model"),
        (["--checkpoint", "d/A/test/pos/testpos00_1.png"], "not a checkpoint that can be opened"),
        ([*NAMED, "--version", "new"], "expected a whole number from 1, got 'new'"),
    ],
)
def test_what_is_no_model(
    trained: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    assert predict.main([*options, "--input", str(trained / "d")]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--input", "nowhere"], "nowhere: not found"),
        (["--input", "empty"], "empty: no images"),
        ([], "--input is missing: expected an image, a folder"),
        (["--input", "d", "--output", "x.txt"], "its ending must be one of .csv, .parquet"),
        (["--input", "d", "--output", "no/x.csv"], "folder no not found"),
    ],
)
def test_what_is_no_input(
    trained: Path, capsys: pytest.CaptureFixture[str], given: list[str], said: str
) -> None:
    (trained / "empty").mkdir(exist_ok=True)
    assert predict.main([*NAMED, *given]) == 2
    assert said in capsys.readouterr().err


def test_a_pipe_as_an_input_is_refused(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hostile.pipe(trained / "x.npz")
    assert predict.main([*NAMED, "--input", "x.npz"]) == 2
    assert "an .npz that can be read: is a named pipe, not a regular file" in capsys.readouterr().err


def test_an_old_model_is_told_of_files_that_it_knows_otherwise(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model of an earlier version: neither its run nor its checkpoint says how files were decoded."""
    folder, run_id = trained / "other", str(champion().run_id)
    folder.mkdir()
    gray = Image.fromarray(np.arange(1024, dtype=np.uint8).reshape(32, 32))
    turned = Image.Exif()
    turned[0x112] = 6
    for name in "ab":
        gray.save(folder / f"{name}.tif", exif=turned, compression="raw")
    gray.save(folder / "c.tif", compression="raw")
    hidden = gray.convert("LA")
    hidden.putpixel((0, 0), (200, 0))
    hidden.save(folder / "d.png")
    old = torch.load("outputs/first/checkpoints/best_model.pth")
    assert old.pop("decoding") == FORMAT
    torch.save(old, "old.pth")
    of_run = ["--run", run_id]
    options = {"new": of_run, "old run": of_run, "old checkpoint": ["--checkpoint", "old.pth"]}
    client = mlflow.MlflowClient()
    for kind, named in options.items():
        if kind == "old run":
            client.delete_tag(run_id, "data.decoding")
        predicted(*named, "--input", "other")
        err = " ".join(capsys.readouterr().err.split())
        told = "here: 2 uncompressed TIFF with an orientation of 5 to 8, 1 image with transparent pixels."
        assert ("was trained by an earlier version" in err, told in err) == (kind != "new",) * 2
        if kind != "new":
            predicted(*named, "--input", "d/A/test")
            assert "earlier version" not in capsys.readouterr().err
    client.set_tag(run_id, "data.decoding", str(FORMAT))
