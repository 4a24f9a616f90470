"""Gray levels by look-up tables and SIGMOID, files without a preamble, and patients in two spellings."""

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.pixels.processing import apply_modality_lut, apply_voi, apply_windowing

from src.data import dicom
from src.data.dataset import Dataset, load_dataset
from src.data.image_files import is_image
from src.data.pixels import ImageError, to_8_bits
from src.errors import DataError
from src.utils.config import DataConfig
from tests.data.test_dicom_values import item, read, write

pytestmark = pytest.mark.usefixtures("folder")
STORED = np.arange(-40, 360, 5).reshape(8, 10)


def table(entries: list[int], first: int, bits: int) -> Any:
    found = item(LUTDescriptor=[len(entries), first, bits], LUTData=entries)
    found[0]["LUTDescriptor"].VR, found[0]["LUTData"].VR = "SS" if first < 0 else "US", "US"
    return found


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize(("center", "width"), [(40, 400), (-1000.5, 0.5), (100, 30)])
def test_sigmoid_is_that_of_pydicom(center: float, width: float, photometric: str) -> None:
    elements = {"WindowCenter": center, "WindowWidth": width, "VOILUTFunction": "SIGMOID"}
    elements |= {"RescaleSlope": 2, "RescaleIntercept": -100, "PhotometricInterpretation": photometric}
    picture = read(STORED.tolist(), 12, signed=True, **elements)
    dataset = pydicom.dcmread("x.dcm")
    with np.errstate(over="ignore"):
        expected = apply_windowing(apply_modality_lut(dataset.pixel_array, dataset), dataset)
    gray = (expected - (-2048 * 2 - 100)) / (4095 * 2) * 255
    gray = 255 - gray if photometric == "MONOCHROME1" else gray
    assert np.abs(to_8_bits(picture, None) - gray).max() <= 0.501
    assert picture.own is None


@pytest.mark.parametrize("intercept", [None, -30])
@pytest.mark.parametrize(
    ("entries", "first", "bits"),
    [
        (list(range(0, 4096, 16)), 0, 12),
        (list(range(255, -1, -1)), -20, 8),
        ([0] * 5 + [1000] * 5 + [65535] * 5 + [40000] * 5, 100, 16),
        (list(range(1024)), 0, 10),
    ],
)
def test_a_look_up_table_is_that_of_pydicom(
    entries: list[int], first: int, bits: int, intercept: int | None
) -> None:
    rescale = {} if intercept is None else {"RescaleSlope": 1, "RescaleIntercept": intercept}
    sequence = table(entries, first, bits)
    picture = read(STORED.tolist(), 12, signed=True, VOILUTSequence=sequence, **rescale)
    dataset = pydicom.dcmread("x.dcm")
    values = apply_modality_lut(dataset.pixel_array, dataset).astype(np.int32)
    expected = apply_voi(np.clip(values, first, first + len(entries) - 1), dataset)
    seen = to_8_bits(picture, None)
    assert np.abs(seen - expected.astype(float) * 255 / (2**bits - 1)).max() <= 0.501
    assert len(np.unique(seen)) > 2
    assert np.array_equal(picture.values, STORED + (intercept or 0))  # a configured window sees these


def test_a_file_of_pydicom_with_a_look_up_table() -> None:
    path = Path(str(get_testdata_file("vlut_04.dcm")))
    dataset = pydicom.dcmread(path)
    expected = apply_voi(dataset.pixel_array, dataset).astype(float) * 255 / 65535
    assert np.abs(to_8_bits(dicom.read_image(path), None) - expected).max() <= 0.501


def test_padding_is_black_beside_a_look_up_table() -> None:
    falling = table(list(range(255, -1, -1)), 0, 8)
    picture = read([[0, 10, 255]], 8, PixelPaddingValue=0, VOILUTSequence=falling)
    assert to_8_bits(picture, None).tolist() == [[0, 245, 0]]


def test_a_window_goes_before_a_look_up_table() -> None:
    falling = table(list(range(255, -1, -1)), 0, 8)
    picture = read([[0, 255]], 8, WindowCenter=128, WindowWidth=256, VOILUTSequence=falling)
    assert to_8_bits(picture, None).tolist() == [[0, 255]]


def bare(path: Path, meta: bool) -> Path:
    """Cut the preamble off a file, and the file meta information as well."""
    content = path.read_bytes()
    start = 132 if meta else 132 + 12 + int.from_bytes(content[140:144], "little")
    path.write_bytes(content[start:])
    return path


@pytest.mark.parametrize("meta", [False, True], ids=["no meta", "meta"])
@pytest.mark.parametrize("syntax", ["explicit", "implicit"])
@pytest.mark.parametrize("name", ["x.dcm", "IM0001", "1.2.840.77"])
def test_a_file_without_preamble_is_read(name: str, syntax: str, meta: bool) -> None:
    path = bare(write(np.array([[3, 700]]), syntax=syntax, RescaleIntercept=-3, RescaleSlope=1), meta)
    path = path.rename(name)
    assert is_image(name)
    assert dicom.is_dicom(path)
    assert dicom.read_image(path).values.tolist() == [[0, 697]]
    assert dicom.read_header(path)[:3] == (1, 2, 1)


@pytest.mark.parametrize(
    "content",
    [b"", b"\x08\0\x05\0CS\x0a\0ISO_IR 100", b"\x08\0\x16\0" * 300, bytes(2000), b"\x08\0text" * 99],
)
def test_other_files_without_an_ending_are_no_dicom(content: bytes) -> None:
    Path("IM0001").write_bytes(content)
    assert not is_image("IM0001")
    Path("IM0001.dcm").write_bytes(content)
    with pytest.raises(ImageError, match=r"IM0001\.dcm: not a DICOM file"):
        dicom.read_image(Path("IM0001.dcm"))


def test_compressed_pixels_without_a_transfer_syntax_are_refused() -> None:
    path = bare(write(np.arange(64).reshape(8, 8), 8, syntax="RLE"), meta=False)
    with pytest.raises(ImageError, match="its pixels are compressed, but it has no transfer syntax"):
        dicom.read_image(path)


def study(root: Path, *patients: str) -> Path:
    """Twenty patients of one image each, and further ones of the first class."""
    for number, patient in enumerate([*(f"P{number + 10}" for number in range(20)), *patients]):
        path = root / "A" / ("neg", "pos")[number % 2 if number < 20 else 0] / f"IM{number:02d}"
        path.parent.mkdir(parents=True, exist_ok=True)
        write(np.random.default_rng(number).integers(0, 255, (8, 8)), 8, PatientID=patient).rename(path)
    return root


def load(root: Path) -> Dataset:
    return load_dataset(DataConfig(root_dir=str(root)), root.parent / "cache")


@pytest.mark.parametrize(("one", "two"), [("007", "7"), ("id_1", "ID-1"), ("A 1", "a  1")])
def test_two_spellings_of_a_patient_are_refused(folder: Path, one: str, two: str) -> None:
    root = study(folder / "d", one, two)
    message = (
        rf"may be the same patient \(PatientID\): '{one}' \(file A/neg/IM20\) and '{two}' \(file A/neg/IM21\)"
    )
    for _ in range(2):  # also from the index, which holds no names
        with pytest.raises(DataError, match=message):
            load(root)
    (index,) = (folder / "cache/index").glob("*.npz")
    assert b"P10" not in index.read_bytes()


def test_numbers_that_a_spreadsheet_wrote_are_one_patient(folder: Path) -> None:
    dataset = load(study(folder / "d", "7", "7.0", " 7"))
    sides = [patient for split in dataset.splits.values() for patient in split.patients]
    assert (len(sides), len(set(sides))) == (23, 21)


def test_numbers_of_one_length_are_several_patients(folder: Path) -> None:
    dataset = load(study(folder / "d", "01-001", "001-01"))
    assert len({patient for split in dataset.splits.values() for patient in split.patients}) == 22


@pytest.mark.parametrize("name", ["ANONYMOUS", "unknown", "n/a"])
def test_a_name_of_nobody_is_no_patient(folder: Path, name: str) -> None:
    with pytest.raises(DataError, match="2 of 22 files name no patient"):
        load(study(folder / "d", name, name))


@pytest.mark.parametrize(
    ("elements", "told"),
    [
        ({"RescaleIntercept": -1024}, "DICOM with an intercept or a slope alone"),
        ({"RescaleIntercept": 0}, ""),
        ({"PixelPaddingValue": 90}, "DICOM with padding"),
        ({"PixelPaddingValue": 0}, ""),  # dark already
        ({"PresentationLUTShape": "INVERSE"}, "DICOM with PresentationLUTShape INVERSE"),
        (
            {
                "SharedFunctionalGroupsSequence": item(
                    PixelValueTransformationSequence=item(RescaleSlope=1, RescaleIntercept=-3)
                )
            },
            "DICOM with rescaling in functional groups",
        ),
    ],
)
def test_what_earlier_versions_read_wrongly_is_known(elements: dict[str, Any], told: str) -> None:
    assert read([[0, 40, 90]], **elements).corrected == tuple(filter(None, [told]))
