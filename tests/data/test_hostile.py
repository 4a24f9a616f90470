"""Hostile files are refused within ten seconds and one gigabyte, and what is merely large is not."""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from src.data.dataset import load_dataset
from src.data.npz import open_arrays
from src.data.pillow_images import read_image
from src.data.pixels import ImageError
from src.data.sources import load_inputs
from src.errors import ConfigError, DataError
from src.evaluation.predictions import read_predictions
from src.training.checkpoint import load_checkpoint
from src.utils import limits
from src.utils.config import DataConfig
from src.utils.limits import Limit
from tests import hostile_files as hostile
from tests.conftest import ROOT, Run
from tests.images import write_folder

READ = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (10**9, 10**9))
from pathlib import Path
from src.data import dicom, pillow_images
from src.data.image_table import NEEDED, read_table
from src.data.problems import Problems
from src.data.npz import list_npz
from src.errors import UserError
from src.utils.config import DataConfig

path = Path(sys.argv[1])
try:
    if path.suffix == ".npz":
        print(len(list_npz(path, "A", None).samples), "samples")
    elif path.suffix == ".csv":
        print(len(read_table(path, DataConfig(), Problems(""), NEEDED).lines), "lines")
    elif path.suffix == ".dcm":
        print(dicom.read_image(path).values.shape)
    else:
        print(pillow_images.read_image(path).values.shape)
except UserError as error:
    print(error)
"""


def frames(rows: int, columns: int, count: int) -> Callable[[Path], None]:
    return lambda path: hostile.long_dicom(path, Rows=rows, Columns=columns, NumberOfFrames=count)


CASES: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "deflated DICOM": ("x.dcm", hostile.deflated_dicom, "bytes of a DICOM file besides its pixels"),
    "deflated before": ("x.dcm", hostile.deflated_private, "bytes of a DICOM file besides its pixels"),
    "large DICOM": ("x.dcm", frames(65_535, 65_535, 1), "pixels of one image, and the limit is 100,000,000"),
    "long DICOM": ("x.dcm", frames(512, 512, 2**31 - 1), "values of one image file"),
    "many items": ("x.dcm", hostile.many_items, "elements and sequence items of a DICOM file"),
    "deep DICOM": ("x.dcm", hostile.deep_dicom, "nested too deeply"),
    "RLE": ("x.dcm", hostile.run_lengths, "bytes of compressed pixels for an image of 8,192 bytes"),
    "JPEG 2000 in DICOM": ("x.dcm", hostile.wide_j2k, "64 x 64 pixels, its compressed image 60000 x 60000"),
    "palette": ("x.dcm", hostile.long_palette, "its palette has more than 65,536 colors"),
    "PNG text": ("x.png", hostile.text_bomb, "Decompressed data too large"),
    "TIFF pages": ("x.tif", hostile.many_pages, "holds several pages"),
    "JPEG 2000": ("x.png", hostile.wide_jp2, "refused as too large: Image size (3600000000 pixels) exceeds"),
    "PostScript": ("x.png", hostile.postscript, "not an image that can be read"),
    "npz that lies": ("x.npz", hostile.npz_that_lies, "train_images holds 734,003,200 bytes, and its header"),
    "npz twice": ("x.npz", hostile.npz_twice, "several arrays are named 'val_images'"),
    "npz of bzip2": ("x.npz", hostile.npz_of_bzip2, "a compression that numpy does not use"),
    "npz list": ("x.npz", hostile.npz_with_long_list, "bytes of the list of an .npz's arrays"),
    "npz labels": ("x.npz", hostile.npz_of_many_labels, "one whole number for each of the 8 images"),
    "one line": ("x.csv", hostile.one_line, "characters of one line of a CSV file"),
    # What is large for good reasons is answered for what it is, and as quickly.
    "CT": ("x.dcm", frames(512, 512, 1500), "holds 1500 frames; export each slice"),
    "deflated CT": ("x.dcm", hostile.deflated_frames, "holds 1500 frames; export each slice"),
    "tomosynthesis": ("x.dcm", frames(2500, 2000, 70), "holds 70 frames; export each slice"),
}


def answer(run_python: Run, path: Path) -> str:
    """What reading a file in one gigabyte of memory prints within ten seconds."""
    started = time.monotonic()
    done = run_python("-c", READ, str(path))
    assert time.monotonic() - started < 10
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="macOS does not limit a process's memory")
@pytest.mark.parametrize("name", CASES)
def test_answered_in_bounded_time_and_memory(name: str, folder: Path, run_python: Run) -> None:
    file, write, expected = CASES[name]
    write(folder / file)
    answered = answer(run_python, folder / file)
    assert expected in answered
    if "the limit is" in answered:
        assert "MLPROJECT_LIMIT_FACTOR" in answered


def test_an_array_that_nobody_needs_is_not_read(folder: Path, run_python: Run) -> None:
    hostile.npz_with_masks(folder / "x.npz")
    assert answer(run_python, folder / "x.npz") == "16 samples\n"


def test_what_says_to_be_larger_than_a_zip_can_be_is_refused(folder: Path) -> None:
    hostile.write_npz(folder / "x.npz")
    hostile.add_array(folder / "x.npz", "test_images", (8, 16, 16), 8 * 256)
    whole = bytearray((folder / "x.npz").read_bytes())
    at = whole.rfind(b"PK\x01\x02") + 24  # the inflated size, in the list at the end
    whole[at : at + 4] = (4_000_000_000).to_bytes(4, "little")
    (folder / "x.npz").write_bytes(whole)
    with open_arrays(folder / "x.npz") as arrays:
        assert arrays["train_images"].shape == (8, 16, 16)
    with (
        pytest.raises(DataError, match="cannot have the 4,000,000,000 bytes"),
        open_arrays(folder / "x.npz") as arrays,
    ):
        arrays.describe("test_images")


def test_the_largest_medmnist_files_are_within_the_limits() -> None:
    assert limits.ARRAY_BYTES.excess(89_996 * 224 * 224 * 3) == ""  # PathMNIST
    assert limits.ARRAY_BYTES.excess(78_468 * 224 * 224) == ""  # ChestMNIST
    assert limits.NPZ_IMAGES.excess(107_180) == ""


def test_a_limit_is_raised_and_lowered_by_one_variable(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_folder(folder / "d", counts={"train": 8, "val": 8})
    config = DataConfig.model_validate({"root_dir": str(root)})
    monkeypatch.setenv(limits.FACTOR, "1e-6")
    with pytest.raises(DataError, match=r"256 pixels.* limit of 100 pixels.*MLPROJECT_LIMIT_FACTOR"):
        load_dataset(config, folder / "c")
    # What a limit has refused is not remembered as damaged.
    monkeypatch.delenv(limits.FACTOR)
    assert len(load_dataset(config, folder / "c").splits["train"]) == 8


def test_every_limit_is_documented() -> None:
    rows = [
        f"| {limit.unit} | {limit.base:,} |" for limit in vars(limits).values() if isinstance(limit, Limit)
    ]
    assert len(rows) == 17
    documented = (ROOT / "README.md").read_text().splitlines()
    assert [row for row in rows if row not in documented] == []


def test_the_answer_names_the_factor_that_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    over = 2 * limits.IMAGE_PIXELS.base + 1
    assert "at least 3" in limits.IMAGE_PIXELS.excess(over)
    monkeypatch.setenv(limits.FACTOR, "3")
    assert limits.IMAGE_PIXELS.excess(over) == ""


@pytest.mark.parametrize("factor", ["0", "-1", "much", "nan", "inf"])
def test_a_factor_is_a_positive_number(factor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(limits.FACTOR, factor)
    with pytest.raises(ConfigError, match=f"MLPROJECT_LIMIT_FACTOR={factor}: expected a positive number"):
        limits.IMAGE_PIXELS.excess(1)


def test_a_tiff_whose_pages_lead_back_is_one_image(folder: Path) -> None:
    hostile.many_pages(folder / "x.tif", pages=1)
    whole = bytearray((folder / "x.tif").read_bytes())
    whole[-4:] = (72).to_bytes(4, "little")
    (folder / "x.tif").write_bytes(whole)
    assert read_image(folder / "x.tif").values.shape == (8, 8)


@pytest.mark.parametrize("kind", hostile.KINDS)
def test_what_is_no_file_is_refused_by_its_kind(kind: str, folder: Path) -> None:
    write, message = hostile.KINDS[kind]
    write(folder / "x.png")
    with pytest.raises(ImageError, match=f"x.png: damaged or unreadable: {message}"):
        read_image(folder / "x.png")


@pytest.mark.parametrize("name", ["x.npz", "x.csv", "x.png", "x.dcm", "x", "folder/manifest.csv"])
@pytest.mark.parametrize("kind", hostile.KINDS)
def test_an_input_of_a_model_is_refused_by_its_kind(kind: str, name: str, folder: Path) -> None:
    write, message = hostile.KINDS[kind]
    (folder / "folder").mkdir()
    write(folder / name)
    config = DataConfig.model_validate({"image_size": 16, "channels": 1})
    with pytest.raises(DataError, match=f"{name}: .*{message}"):
        load_inputs(name.partition("/")[0], config, ("neg", "pos"), folder / "c")


@pytest.mark.parametrize("kind", hostile.KINDS)
def test_a_table_of_predictions_is_refused_by_its_kind(kind: str, folder: Path) -> None:
    write, message = hostile.KINDS[kind]
    write(folder / "test.csv")
    with pytest.raises(DataError, match=f"test.csv: no predictions can be read here .*{message}"):
        read_predictions(folder / "test.csv")


def test_files_without_an_ending_are_looked_at_without_waiting(folder: Path) -> None:
    root = write_folder(folder / "d", counts={"train": 80, "val": 8})
    for number, (write, _) in enumerate(hostile.KINDS.values()):
        write(root / f"A/train/pos/{number}")  # as scanners name DICOM files
    config = DataConfig.model_validate({"root_dir": str(root)})
    assert len(load_dataset(config, folder / "c").splits["train"]) == 80


@pytest.mark.parametrize("kind", hostile.KINDS)
def test_a_checkpoint_is_refused_by_its_kind(kind: str, folder: Path) -> None:
    write, message = hostile.KINDS[kind]
    write(folder / "latest.pth")
    with pytest.raises(DataError, match=f"latest.pth: not a checkpoint that can be opened: {message}"):
        load_checkpoint(folder / "latest.pth")
