"""Whatever a user can get wrong before training: exit 2, one message, no traceback, no run."""

import shutil
import struct
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import mlflow
import numpy as np
import pytest
from PIL import Image
from pydicom.data import get_testdata_file

from src.train import main
from src.utils.torchvision_import import torchvision
from tests import hostile_files as hostile
from tests.conftest import FROM_SCRATCH
from tests.images import make_images, write_folder, write_npz

Prepare = Callable[[Path], list[str]]

FAST = ["--epochs", "1", *FROM_SCRATCH]


def config_file(folder: Path, text: str) -> list[str]:
    (folder / "my.yaml").write_text(text)
    return ["--config", "my.yaml"]


def only_one_class(folder: Path) -> list[str]:
    write_folder(folder / "d", counts={"": 8})
    for file in (folder / "d/A/neg").iterdir():
        file.unlink()
    return ["--data", "d"]


def no_class_in_val(folder: Path) -> list[str]:
    write_folder(folder / "d", counts={"train": 8, "val": 8})
    for file in (folder / "d/A/val/pos").iterdir():
        file.unlink()
    return ["--data", "d"]


def corrupt_image(folder: Path) -> list[str]:
    write_folder(folder / "d", counts={"train": 8, "val": 8})
    file = folder / "d/A/train/pos/p000_1.png"
    file.write_bytes(file.read_bytes()[:60])
    return ["--data", "d"]


def text_named_png(folder: Path) -> list[str]:
    write_folder(folder / "d", counts={"train": 8, "val": 8})
    (folder / "d/A/train/pos/notes.png").write_text("see the other folder")
    return ["--data", "d"]


def too_few_to_split(folder: Path) -> list[str]:
    write_folder(folder / "d", counts={"": 4})
    return ["--data", "d"]


def empty_folder(folder: Path) -> list[str]:
    (folder / "d").mkdir()
    return ["--data", "d"]


def no_images(folder: Path) -> list[str]:
    (folder / "d/A/neg").mkdir(parents=True)
    return ["--data", "d"]


def other_modality(folder: Path) -> list[str]:
    write_folder(folder / "d", counts={"": 8}, modality="P")
    write_folder(folder / "d", counts={"": 8}, modality="V")
    return ["--data", "d", "--modality", "X"]


def npz_that_is_none(folder: Path) -> list[str]:
    (folder / "d.npz").write_bytes(b"PK\x03\x04 nonsense")
    return ["--data", "d.npz"]


def npz_of_objects(folder: Path) -> list[str]:
    images, labels = make_images(8, 16, 0)
    harmful = np.array([print] * 8, dtype=object)
    np.savez(
        folder / "d.npz", train_images=harmful, train_labels=labels, val_images=images, val_labels=labels
    )
    return ["--data", "d.npz"]


def npz_without_val(folder: Path) -> list[str]:
    images, labels = make_images(8, 16, 0)
    np.savez(folder / "d.npz", train_images=images, train_labels=labels)
    return ["--data", "d.npz"]


def tiny(folder: Path) -> list[str]:
    write_npz(folder / "d.npz")
    return ["--data", "d.npz"]


def output_is_no_folder(folder: Path) -> list[str]:
    (folder / "out").write_text("a file")
    return [*tiny(folder), "--set", "experiment.output_dir=out/below"]


def three_classes(folder: Path) -> list[str]:
    images, _ = make_images(9, 16, 0)
    labels = np.arange(9) % 3
    other = images[::-1] // 2
    np.savez(folder / "d.npz", train_images=images, train_labels=labels, val_images=other, val_labels=labels)
    return ["--data", "d.npz", "--set", "evaluation.threshold=youden"]


def folder_in_use(folder: Path) -> list[str]:
    (folder / "outputs/mine/plots").mkdir(parents=True)
    return [*tiny(folder), "--set", "experiment.name=mine"]


def manifest(folder: Path, text: str) -> list[str]:
    write_folder(folder / "d", counts={"train": 8, "val": 8})
    (folder / "other.png").write_bytes((folder / "d/A/train/pos/p000_1.png").read_bytes())
    (folder / "d/manifest.csv").write_text(text)
    return ["--data", "d"]


def dicom(folder: Path, name: str) -> list[str]:
    write_folder(folder / "d", counts={"train": 8, "val": 8})
    shutil.copy(str(get_testdata_file(name)), folder / f"d/A/train/pos/{name}")
    return ["--data", "d"]


def image_bomb(folder: Path) -> list[str]:
    """A PNG of a few bytes that says to hold ten thousand million pixels."""
    write_folder(folder / "d", counts={"train": 8, "val": 8})
    file = folder / "d/A/train/pos/bomb.png"
    Image.new("L", (8, 8)).save(file)
    header = b"IHDR" + struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)
    whole = file.read_bytes()
    file.write_bytes(whole[:12] + header + struct.pack(">I", zlib.crc32(header)) + whole[33:])
    return ["--data", "d"]


def hostile_image(folder: Path, name: str, write: Callable[[Path], None]) -> list[str]:
    """A folder of images with one more file, or one in place of another."""
    write_folder(folder / "d", counts={"train": 8, "val": 8})
    write(folder / "d/A/train/pos" / name)
    return ["--data", "d"]


def hostile_data(folder: Path, name: str, write: Callable[[Path], None]) -> list[str]:
    write(folder / name)
    return ["--data", name]


def nothing_joins(folder: Path) -> list[str]:
    write_folder(folder / "d", counts={"train": 8, "val": 8})
    write_folder(folder / "d", counts={"train": 8, "val": 8}, modality="P")
    for file in (folder / "d/P").rglob("*.png"):
        file.rename(file.with_name(f"x{file.name}"))
    return ["--data", "d", "--modality", "A+P"]


CASES: dict[str, tuple[Prepare, list[str]]] = {
    "missing folder": (
        lambda _: ["--data", "nowhere"],
        ["nowhere: not found", "--data takes demo"],
    ),
    "empty folder": (empty_folder, ["no modality 'A'", "no folders"]),
    "folder without images": (no_images, ["no images"]),
    "one class": (only_one_class, ["only", "'pos'", "two classes or more"]),
    "a class missing in val": (no_class_in_val, ["val has no image of class pos", "val neg: 4, val pos: 0"]),
    "too few to split": (too_few_to_split, ["2 patients, too few"]),
    "corrupt image": (corrupt_image, ["p000_1.png: damaged", "data.on_bad_image=skip"]),
    "text named png": (text_named_png, ["notes.png: not an image"]),
    "manifest without a column": (
        lambda f: manifest(f, "path,label\na.png,pos\n"),
        ["manifest.csv: no column modality", "path, label, modality"],
    ),
    "absolute path in a manifest": (
        lambda f: manifest(f, "path,label,modality\n/data/p1.png,pos,A\n/data/p2.png,neg,A\n"),
        ["manifest.csv, line 2: the path '/data/p1.png' is absolute", "data.allow_outside_root=true"],
    ),
    "path outside the root": (
        lambda f: manifest(f, "path,label,modality\nA/train/pos/p000_1.png,pos,A\n../other.png,neg,A\n"),
        ["line 3: the path '../other.png' lies outside the folder", "data.allow_outside_root=true"],
    ),
    "DICOM without pixels": (lambda f: dicom(f, "rtplan.dcm"), ["rtplan.dcm: holds no image"]),
    "DICOM of several frames": (lambda f: dicom(f, "emri_small.dcm"), ["emri_small.dcm: holds 10 frames"]),
    "transfer syntax that cannot be decoded": (
        lambda f: dicom(f, "JPGExtended.dcm"),
        ["JPGExtended.dcm: damaged, or its transfer syntax, JPEG Extended (Process 2 and 4)", "convert it"],
    ),
    "image bomb": (image_bomb, ["bomb.png: refused as too large"]),
    "modalities that do not join": (
        nothing_joins,
        ["no image of A has a counterpart in P", "data.patient_regex and data.image_id_regex"],
    ),
    "several modalities of an npz": (
        lambda f: [*tiny(f), "--modality", "A+P"],
        ["d.npz: an .npz holds one modality; choose one of A, P"],
    ),
    "a modality twice": (lambda _: ["--modality", "A+A"], ["data.modalities", "duplicate modality"]),
    "a window the wrong way round": (
        lambda _: ["--set", "data.window=[240, -160]"],
        ["data.window: low must be below high"],
    ),
    "a cache that is too small": (
        lambda f: [*tiny(f), "--set", "data.cache_gb=1e-6"],
        ["the decoded images take", "raise data.cache_gb"],
    ),
    "unknown model": (lambda f: [*tiny(f), "--model", "resnet19"], ["resnet19", "resnet18"]),
    "unknown modality": (other_modality, ["no modality 'X'", "P, V"]),
    "bad YAML": (lambda f: config_file(f, "training: ["), ["my.yaml: not valid YAML", "line 1"]),
    "python in YAML": (
        lambda f: config_file(f, "data: !!python/object/apply:os.mkdir [owned]"),
        ["my.yaml: only plain YAML", "python/object"],
    ),
    "missing config": (lambda _: ["--config", "none.yaml"], ["none.yaml: config file not found"]),
    "unknown key": (
        lambda f: config_file(f, "training: {learning_rat: 1}"),
        ["my.yaml: training.learning_rat: unknown key", "training.learning_rate?"],
    ),
    "unknown section": (lambda _: ["--set", "trainin.epochs=3"], ["trainin: unknown key", "training?"]),
    "negative learning rate": (
        lambda _: ["--set", "training.learning_rate=-1"],
        ["training.learning_rate", "-1"],
    ),
    "NaN learning rate": (
        lambda _: ["--set", "training.learning_rate=.nan"],
        ["training.learning_rate", "nan"],
    ),
    "learning rate of letters": (lambda _: ["--set", "training.learning_rate=fast"], ["'fast'", "number"]),
    "0 epochs": (lambda _: ["--epochs", "0"], ["training.epochs", "greater than or equal to 1"]),
    "override without value": (lambda _: ["--set", "training.epochs"], ["dotted.key=value"]),
    "modality with a slash": (lambda _: ["--modality", "A/B"], ["data.modalities", "'A/B'"]),
    "modality with dots": (lambda _: ["--modality", "../A"], ["data.modalities", "'../A'"]),
    "npz that is none": (npz_that_is_none, ["d.npz: neither a folder of images nor an .npz"]),
    "npz of objects": (npz_of_objects, ["d.npz", "allow_pickle=False"]),
    "npz without val": (npz_without_val, ["no array val_images", "train_images"]),
    "missing weights": (lambda f: [*tiny(f), "--set", "model.weights=w.pth"], ["w.pth"]),
    "output in a file": (output_is_no_folder, ["experiment.output_dir", "cannot be written"]),
    "image too small": (
        lambda f: [*tiny(f), "--model", "densenet121", "--set", "model.stem=imagenet"],
        ["densenet121", "data.image_size"],
    ),
    "no such device": (
        lambda f: [*tiny(f), "--set", "training.device=cuda:7"],
        ["cuda:7 is not available", "cpu"],
    ),
    "threshold rule": (lambda _: ["--set", "evaluation.threshold=best"], ["evaluation.threshold", "youden"]),
    "threshold rule for three classes": (three_classes, ["evaluation.threshold: youden needs two classes"]),
    "folder of another run": (folder_in_use, ["outputs/mine belongs to another run"]),
    "a value for a section": (
        lambda f: [*config_file(f, "data: small.npz"), "--modality", "A"],
        ["data: settings such as data.modalities belong below it"],
    ),
    "unknown option": (
        lambda _: ["--learning-rate", "1"],
        ["unrecognized arguments: --learning-rate 1", "--help"],
    ),
    **{
        f"a {kind} among images": (
            partial(hostile_image, name="x.png", write=write),
            [f"x.png: damaged or unreadable: {message}", "data.on_bad_image=skip"],
        )
        for kind, (write, message) in hostile.KINDS.items()
    },
    "a pipe as a DICOM file": (
        partial(hostile_image, name="x.dcm", write=hostile.pipe),
        ["x.dcm: damaged or unreadable: is a named pipe, not a regular file"],
    ),
    "a pipe as a manifest": (
        partial(hostile_image, name="../../../manifest.csv", write=hostile.pipe),
        ["manifest.csv: cannot be read as a table: is a named pipe, not a regular file"],
    ),
    "a device as a manifest": (
        partial(hostile_data, name="d.csv", write=hostile.device),
        ["d.csv: cannot be read as a table: is a character device, not a regular file"],
    ),
    "a pipe as a config": (
        lambda f: [*hostile_data(f, "my.yaml", hostile.pipe)[2:], "--config", "my.yaml"],
        ["my.yaml: cannot be read as text: is a named pipe, not a regular file"],
    ),
    "a pipe as an npz": (
        partial(hostile_data, name="d.npz", write=hostile.pipe),
        ["d.npz: neither a folder of images nor an .npz that can be read: is a named pipe"],
    ),
    "a manifest of one long line": (
        partial(hostile_data, name="d.csv", write=hostile.one_line),
        ["d.csv: refused as too large: line 2", "characters of one line", "MLPROJECT_LIMIT_FACTOR"],
    ),
    "a manifest of many columns": (
        lambda f: manifest(f, f"path,label,modality{',x' * 400_000}\n"),
        ["400,003 columns", "the limit is 2,000"],
    ),
    "a manifest with a NUL": (
        lambda f: manifest(f, "path,label,modality\nA/train/pos/p000_1.png,p\0s,A\n"),
        ["manifest.csv: line 2 contains a NUL byte"],
    ),
    "deflated DICOM that becomes 4 GB": (
        partial(hostile_image, name="x.dcm", write=hostile.deflated_dicom),
        ["x.dcm: refused as too large", "bytes of a DICOM file besides its pixels", "MLPROJECT_LIMIT_FACTOR"],
    ),
    "DICOM of too many frames": (
        partial(hostile_image, name="x.dcm", write=partial(hostile.long_dicom, NumberOfFrames=10**9)),
        ["x.dcm: refused as too large", "values of one image file (rows x columns x frames x samples)"],
    ),
    "DICOM whose pixels are larger than its header says": (
        partial(hostile_image, name="x.dcm", write=hostile.wide_j2k),
        ["x.dcm: its header says 64 x 64 pixels, its compressed image 60000 x 60000"],
    ),
    "TIFF of many pages": (
        partial(hostile_image, name="x.tif", write=hostile.many_pages),
        ["x.tif: holds several pages; export each slice"],
    ),
    "PNG with a text of 256 MB": (
        partial(hostile_image, name="x.png", write=hostile.text_bomb),
        ["x.png: damaged or unreadable: Decompressed data too large"],
    ),
    "npz whose header lies": (
        partial(hostile_data, name="d.npz", write=hostile.npz_that_lies),
        ["train_images holds 734,003,200 bytes, and its header says (8, 16, 16) of uint8"],
    ),
    "npz with an array twice": (
        partial(hostile_data, name="d.npz", write=hostile.npz_twice),
        ["d.npz", "several arrays are named 'val_images'"],
    ),
    **{name: (partial(config_file, text=text), [words]) for name, (text, words) in hostile.YAML.items()},
    "store in nowhere": (
        tiny,
        ["/proc/nowhere/outputs (beside the store of MLFLOW_TRACKING_URI) cannot be written"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_refused(
    name: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare, expected = CASES[name]
    arguments = prepare(folder)
    if name == "store in nowhere":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////proc/nowhere/mlflow.db")
    overrides = FAST if "--epochs" not in arguments else FAST[2:]
    if "model.weights=w.pth" in arguments:
        overrides = FAST[:2]
    assert main([*overrides, *arguments]) == 2
    message = capsys.readouterr().err
    assert message.count("error:") == 1
    for part in expected:
        assert part in message
    assert "Traceback" not in message
    assert not list(folder.glob("outputs/*/checkpoints"))
    assert not (folder / "owned").exists()
    if (folder / "mlflow.db").exists():
        assert mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db").search_runs(["0"]) == []


def test_training_never_starts_from_random_weights_unasked(
    npz: Path, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "http://127.0.0.1:9/resnet18-f37072fd.pth"  # where nothing answers
    monkeypatch.setattr(torchvision.models.ResNet18_Weights.DEFAULT.value, "url", url)
    assert main(["--data", str(npz), "--epochs", "1"]) == 2
    (message,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "ImageNet weights of resnet18 cannot be downloaded" in message
    assert f"put {url} at {folder}/torch/hub/checkpoints/resnet18-f37072fd.pth" in message
    assert "--set model.weights=none" in message
    assert not (folder / "mlflow.db").exists()
    assert main(["--data", str(npz), "--dry-run", *FAST]) == 0
    assert "weights: none" in capsys.readouterr().out


def test_a_bad_image_may_be_skipped(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*text_named_png(folder), "--set", "data.on_bad_image=skip", "--dry-run", *FAST]
    assert main(arguments) == 0
    assert "1 images are skipped" in capsys.readouterr().err
    # The second start knows it from the index.
    assert main(arguments) == 0
    assert "notes.png" in capsys.readouterr().err


def test_dry_run_shows_and_starts_nothing(
    npz: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--epochs", "7", "--set", "training.epochs=9", *FROM_SCRATCH]
    assert main(["--data", str(npz), "--dry-run", *options]) == 0
    shown = capsys.readouterr().out
    assert "epochs: 9" in shown
    assert "image_size: 16" in shown
    assert "stem: small" in shown
    assert f"store: sqlite:///{folder}/mlflow.db" in shown
    assert [line.split()[1::2] for line in shown.splitlines() if "train" in line and "│" in line] == [
        ["train", "0", "16", "unknown"],
        ["train", "1", "16", "unknown"],
    ]
    assert not (folder / "mlflow.db").exists()
    assert not (folder / "outputs/logs").exists()
