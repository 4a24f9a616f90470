"""DICOM on pydicom's own test files."""

import itertools
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.pixels.processing import apply_windowing

from src.data import dicom, dicom_gray
from src.data.dataset import Dataset, load_dataset
from src.data.pixels import ImageError, to_8_bits
from src.errors import DataError
from src.training.setup import set_up
from src.utils.config import Config, DataConfig
from tests.images import pixels_of


def real(name: str) -> Path:
    found = get_testdata_file(name)
    assert found is not None, name
    return Path(str(found))


# One picture under several transfer syntaxes; compressed without loss, so to the last bit the same.
SAME = {
    "explicit": "MR_small.dcm",
    "implicit": "MR_small_implicit.dcm",
    "big endian": "MR_small_expb.dcm",
    "RLE": "MR_small_RLE.dcm",
    "JPEG-LS": "MR_small_jpeg_ls_lossless.dcm",
    "JPEG 2000": "MR_small_jp2klossless.dcm",
}


@pytest.mark.parametrize("name", SAME.values(), ids=SAME)
def test_transfer_syntaxes_give_the_same_picture(name: str) -> None:
    first, other = dicom.read_image(real(SAME["explicit"])), dicom.read_image(real(name))
    assert other.content == first.content
    assert np.array_equal(other.values, pydicom.dcmread(real(SAME["explicit"])).pixel_array)
    assert (other.full, other.own, other.inverted) == ((-32768, 32767), (-200, 1399), False)


def test_slope_and_intercept_give_hounsfield_units() -> None:
    picture = dicom.read_image(real("CT_small.dcm"))
    assert (picture.values.min(), picture.values.max()) == (128 - 1024, 2191 - 1024)
    assert picture.full == (-32768.0 - 1024, 32767.0 - 1024)
    assert picture.own is None
    picture = dicom.read_image(real("MR2_UNCR.dcm"))
    assert picture.values.max() == pytest.approx(595 * 3.774114 + 0.000061)
    assert picture.full == pytest.approx((0.000061, 4095 * 3.774114 + 0.000061))


def test_a_modality_look_up_table_is_applied() -> None:
    dataset = pydicom.dcmread(real("mlut_18.dcm"))
    picture = dicom.read_image(real("mlut_18.dcm"))
    table = np.asarray(dataset.ModalityLUTSequence[0].LUTData)
    assert picture.full is not None
    assert table.min() <= picture.values.min() < picture.values.max() <= table.max()


@pytest.mark.parametrize("name", ["MR_small.dcm", "693_UNCI.dcm", "MR2_UNCR.dcm", "bad_sequence.dcm"])
def test_the_file_s_window_is_that_of_pydicom(name: str) -> None:
    dataset = pydicom.dcmread(real(name))
    picture = dicom.read_image(real(name))
    expected = apply_windowing(picture.values, dataset)
    ends = apply_windowing(np.array([-1e6, 1e6]), dataset)
    scaled = (expected - ends[0]) * 255 / (ends[1] - ends[0])
    assert np.abs(to_8_bits(picture, None) - scaled).max() <= 0.501
    assert len(np.unique(to_8_bits(picture, None))) > 50


def test_windows_by_the_standard() -> None:
    dataset = pydicom.Dataset()
    dataset.WindowCenter, dataset.WindowWidth = 40, 400
    assert dicom_gray.own_window(dataset) == (-160, 239)
    dataset.VOILUTFunction = "LINEAR_EXACT"
    assert dicom_gray.own_window(dataset) == (-160, 240)
    dataset.VOILUTFunction = "SIGMOID"
    assert dicom_gray.own_window(dataset) is None
    dataset.VOILUTFunction = "LINEAR"
    dataset.WindowWidth = 0
    assert dicom_gray.own_window(dataset) is None
    dataset.WindowCenter, dataset.WindowWidth = [40, 450], [350, 1500]
    assert dicom_gray.own_window(dataset) == (-135, 214)


def test_a_window_asked_for_wins_and_monochrome1_is_inverted() -> None:
    picture = dicom.read_image(real("RG3_UNCR.dcm"))
    assert picture.inverted
    seen = to_8_bits(picture, (200, 710))
    raw = pydicom.dcmread(real("RG3_UNCR.dcm")).pixel_array
    assert (seen[raw <= 200] == 255).all()
    assert (seen[raw >= 710] == 0).all()
    assert (seen[raw == 455] == 127).all()
    assert np.array_equal(
        dicom.read_image(real("RG3_J2KR.dcm")).values, picture.values
    )  # JPEG 2000 without loss


@pytest.mark.parametrize(
    "name",
    [
        "SC_rgb_jpeg_dcmtk.dcm",  # JPEG baseline, YBR
        "SC_rgb_jpeg_gdcm.dcm",  # JPEG lossless
        "SC_rgb_gdcm_KY.dcm",  # JPEG 2000
        "SC_rgb_rle.dcm",
        "SC_rgb_expb.dcm",
        "SC_ybr_full_uncompressed.dcm",
    ],
)
def test_colour(name: str) -> None:
    expected = pydicom.dcmread(real("SC_rgb.dcm")).pixel_array.astype(int)
    picture = dicom.read_image(real(name))
    assert picture.full is None
    assert picture.values.dtype == np.uint8
    # Lossy ones differ at edges, and by a little elsewhere; swapped channels would differ by 255.
    assert np.median(np.abs(picture.values - expected), axis=(0, 1)).max() <= 4


def test_a_palette_becomes_colour() -> None:
    values = dicom.read_image(real("examples_palette.dcm")).values
    assert values.shape == (350, 800, 3)
    assert values.max() > 200
    assert not np.array_equal(values[..., 0], values[..., 2])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rtplan.dcm", "holds no image"),
        ("reportsi.dcm", "holds no image"),
        ("waveform_ecg.dcm", "holds no image"),
        ("emri_small.dcm", "holds 10 frames"),
        ("rtdose_1frame.dcm", "pixels of 32 bits"),
        ("SC_rgb_16bit.dcm", "color of more than 8 bits"),
        ("JPGExtended.dcm", r"transfer syntax, JPEG Extended \(Process 2 and 4\), cannot be decoded"),
        ("MR_truncated.dcm", "bytes of pixel data is less than expected"),
        ("badVR.dcm", "damaged or unreadable"),
        ("no_meta.dcm", "not a DICOM file"),
    ],
)
def test_what_is_not_read_is_a_sentence(name: str, message: str) -> None:
    with pytest.raises(ImageError, match=rf"{name}: .*{message}"):
        dicom.read_image(real(name))


def test_every_file_is_read_or_told() -> None:
    folders = {real("MR_small.dcm").parent, real("RG3_UNCR.dcm").parent}
    files = sorted(path for folder in folders for path in folder.glob("*.dcm"))
    assert len(files) > 100
    told = {path: message_of(path) for path in files}
    assert all(path.name in message for path, message in told.items() if message)
    assert sum(not message for message in told.values()) > 70


def message_of(path: Path) -> str:
    """Why a file is not read; empty where it is, and its header agrees."""
    try:
        picture, header = dicom.read_image(path), dicom.read_header(path)
    except ImageError as bad:
        return str(bad)
    assert picture.values.shape[:2] == (header.height, header.width)
    assert to_8_bits(picture, None).dtype == np.uint8
    return ""


def ct_folder(root: Path, *, same_patient: bool = False) -> Path:
    """Eight patients of two slices each, made of one CT slice; names without an ending, as archives have."""
    dataset = pydicom.dcmread(real("CT_small.dcm"))
    pixels = dataset.pixel_array
    for patient, image in itertools.product(range(16), range(2)):
        dataset.PatientID = "SAME" if same_patient else f"CANARY{patient}"
        dataset.PixelData = np.roll(pixels, 7 * patient + image, axis=0).tobytes()
        path = root / "A" / ("neg", "pos")[patient % 2] / f"IM{patient:03d}{image}"
        path.parent.mkdir(parents=True, exist_ok=True)
        dataset.save_as(path)
    return root


def load(root: Path, **settings: object) -> Dataset:
    return load_dataset(DataConfig.model_validate({"root_dir": str(root), **settings}), root.parent / "cache")


def test_patients_are_those_of_the_files(folder: Path) -> None:
    root = ct_folder(folder / "d")
    first = load(root, window=(-160.0, 240.0))
    assert sum(len(split) for split in first.splits.values()) == 32
    sides = {name: set(split.patients) for name, split in first.splits.items()}
    assert None not in sides["train"]
    assert not sides["train"] & (sides["val"] | sides["test"])
    assert sum(map(len, sides.values())) == 16
    assert load(root, window=(-160.0, 240.0)).fingerprint == first.fingerprint
    (index,) = (folder / "cache/index").glob("*.npz")
    assert b"CANARY" not in index.read_bytes()


def test_a_patient_that_is_everybody_is_nobody(folder: Path) -> None:
    dataset = load(ct_folder(folder / "d", same_patient=True))
    assert set(dataset.splits["train"].patients) == {None}
    assert any("all files have the same PatientID" in note for note in dataset.warnings)


def rewrite(path: Path, **tags: object) -> None:
    dataset = pydicom.dcmread(path)
    for name, value in tags.items():
        setattr(dataset, name, value)
    dataset.save_as(path)


def test_a_patient_that_only_some_files_name_is_refused(folder: Path) -> None:
    root = ct_folder(folder / "d")
    rewrite(next((root / "A/pos").iterdir()), PatientID="")
    with pytest.raises(DataError, match=r"1 of 32 files name no patient.*data\.patient_regex"):
        load(root)
    each = load(root, patient_regex="(.+)")
    assert sum(len(split) for split in each.splits.values()) + each.counts["leaked_images"] == 32


def test_the_files_own_patients_leak_too(folder: Path) -> None:
    """By name each image is a patient of its own; by the files two of them always are one."""
    dataset = load(ct_folder(folder / "d"), patient_regex="(.+)")
    assert dataset.counts["leaked_images"] > 0
    assert any("leak between splits" in note for note in dataset.warnings)
    assert not any("CANARY" in note for note in dataset.warnings)


@pytest.mark.parametrize(
    "tags",
    [{"RescaleSlope": 0, "RescaleIntercept": 5}, {"RescaleSlope": 1e38, "RescaleIntercept": 0}],
    ids=["flat", "endless"],
)
def test_a_rescaling_without_sense_is_a_bad_image(tags: dict[str, object], folder: Path) -> None:
    shutil.copy(real("CT_small.dcm"), folder / "x.dcm")
    rewrite(folder / "x.dcm", **tags)
    with pytest.raises(ImageError, match=r"x\.dcm: its rescale slope"):
        dicom.read_image(folder / "x.dcm")


def test_the_window_is_chosen_warned_of_and_recorded(folder: Path) -> None:
    root = ct_folder(folder / "d")
    without = load(root, fit="legacy")
    assert without.window == (-33792.0, 31743.0)
    (note,) = [note for note in without.warnings if "window" in note]
    assert "-33792 to 31743, and hold -896 to 1167" in note
    assert np.ptp(pixels_of(without.arrays[0])) < 10  # nearly one gray
    seen = load(root, window=(-160.0, 240.0))
    assert seen.window == (-160.0, 240.0)
    assert seen.warnings == ()
    assert pixels_of(seen.arrays[0]).min() == 0
    assert pixels_of(seen.arrays[0]).max() == 255
    # Another window shows the same data otherwise; it is not other data.
    assert seen.fingerprint == without.fingerprint
    assert len(list((folder / "cache/packs").glob("*.npy"))) == 2


def test_without_a_window_percentiles_of_the_training_images_are_shown(folder: Path) -> None:
    root = ct_folder(folder / "d")
    dataset = load(root)
    values = dicom.read_image(next((root / "A/neg").iterdir())).values  # all are the same, rolled
    low, high = np.percentile(values, 0.5, method="lower"), np.percentile(values, 99.5, method="higher")
    assert dataset.window is not None
    assert dataset.window == pytest.approx((low, high), abs=5)  # of 10,000 of its 16,384 pixels
    (note,) = [note for note in dataset.warnings if "window" in note]
    assert (
        f"shown from {dataset.window[0]:g} to {dataset.window[1]:g}, the 0.5th to 99.5th percentile" in note
    )
    shown = pixels_of(dataset.arrays[0])
    assert len(np.unique(shown)) > 200
    # Recorded as data.window, it is what it was.
    again = load(root, window=dataset.window)
    assert np.array_equal(pixels_of(again.arrays[0]), shown)
    assert again.warnings == ()


def test_where_some_files_name_no_window_one_is_used_for_all(folder: Path) -> None:
    root = ct_folder(folder / "d")
    for path in (root / "A/pos").iterdir():
        rewrite(path, WindowCenter=40, WindowWidth=401)
    dataset = load(root)
    assert dataset.window is not None
    assert any(
        "16 images of more than 8 bits name no window: they are shown (and" in n for n in dataset.warnings
    )
    assert load(root, fit="legacy").window is None


@pytest.mark.parametrize(("modality", "flips"), [("CT", False), ("DX", False), ("MG", True), ("MR", True)])
def test_a_body_is_not_mirrored_where_its_sides_differ(folder: Path, modality: str, flips: bool) -> None:
    root = ct_folder(folder / "d")
    for path in (root / "A").rglob("IM*"):
        rewrite(path, Modality=modality)
    values = {"data.root_dir": str(root), "model.name": "shufflenet_v2_x0_5", "model.weights": "none"}
    config = Config().updated(values)
    dataset = load_dataset(config.data, folder / "cache")
    assert dataset.modalities == {modality}
    assert set_up(config, dataset).config.data.augment.horizontal_flip is flips
    config = config.updated({"data.augment.horizontal_flip": not flips})
    assert set_up(config, dataset).config.data.augment.horizontal_flip is not flips


def test_files_that_ask_for_different_windows_are_told(folder: Path) -> None:
    root = ct_folder(folder / "d")
    for number, path in enumerate(sorted((root / "A/pos").iterdir())):
        dataset = pydicom.dcmread(path)
        dataset.WindowCenter, dataset.WindowWidth = (40, 401) if number % 2 else (-600, 1501)
        dataset.save_as(path)
    loaded = load(root, fit="legacy")
    assert loaded.window is None
    assert any("-160.5 to 239.5 in 8" in note for note in loaded.warnings)
    assert any("16 images of more than 8 bits name no window" in note for note in loaded.warnings)
    assert load(root, window=(-160.0, 240.0)).window == (-160.0, 240.0)


def test_a_report_among_images_is_a_bad_image(folder: Path) -> None:
    root = ct_folder(folder / "d")
    shutil.copy(real("reportsi.dcm"), root / "A/pos/report.dcm")
    with pytest.raises(DataError, match=r"report\.dcm: holds no image"):
        load(root)
    assert load(root, on_bad_image="skip").counts["bad_images"] == 1
