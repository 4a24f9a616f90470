"""Values of DICOM images that are written here, so that each value is known before it is read."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom import Dataset, FileMetaDataset
from pydicom.data import get_testdata_file
from pydicom.pixels.processing import apply_windowing
from pydicom.sequence import Sequence
from pydicom.uid import (
    UID,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from src.data import dicom
from src.data.pixels import DecodedImage, ImageError, to_8_bits

NATIVE = {
    "explicit": ExplicitVRLittleEndian,
    "implicit": ImplicitVRLittleEndian,
    "big endian": ExplicitVRBigEndian,
    "deflated": DeflatedExplicitVRLittleEndian,
}


def write(
    stored: NDArray[Any], bits: int = 16, *, signed: bool = False, syntax: str = "explicit", **elements: Any
) -> Path:
    """Write ``x.dcm`` with some stored values; an element that is None is left out."""
    dataset, allocated = Dataset(), 8 if bits <= 8 else 16
    order = ">" if syntax == "big endian" else "<"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = NATIVE.get(syntax, ExplicitVRLittleEndian)
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = CTImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = UID("1.2.3")
    dataset.Rows, dataset.Columns = stored.shape[:2]
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = allocated, bits, bits - 1
    dataset.PixelRepresentation = int(signed)
    dataset.PixelData = stored.astype(f"{order}{'i' if signed else 'u'}{allocated // 8}").tobytes()
    dataset["PixelData"].VR = "OB" if allocated == 8 and syntax != "implicit" else "OW"
    for keyword, value in elements.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    if syntax == "RLE":
        dataset.compress(RLELossless, encoding_plugin="pydicom", generate_instance_uid=False)
    dataset.save_as("x.dcm", enforce_file_format=True)
    return Path("x.dcm")


def read(stored: NDArray[Any] | list[list[int]], bits: int = 16, **elements: Any) -> DecodedImage:
    return dicom.read_image(write(np.array(stored), bits, **elements))


def item(**elements: object) -> Sequence:
    """Return a sequence of one item."""
    only = Dataset()
    for keyword, value in elements.items():
        setattr(only, keyword, value)
    return Sequence([only])


@pytest.mark.parametrize("syntax", [*NATIVE, "RLE"])
@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize("bits", [8, 10, 12, 16])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.usefixtures("folder")
def test_each_value_is_that_of_the_formula(photometric: str, bits: int, signed: bool, syntax: str) -> None:
    low = -(1 << bits - 1) if signed else 0
    high = low + (1 << bits) - 1
    stored = np.linspace(low, high, 96).round().astype(np.int64).reshape(8, 12)
    picture = read(
        stored,
        bits,
        signed=signed,
        syntax=syntax,
        PhotometricInterpretation=photometric,
        RescaleSlope="0.5",
        RescaleIntercept="-24",
        WindowCenter="8",
        WindowWidth="65",
    )
    values = stored * 0.5 - 24
    assert np.array_equal(picture.values, values)
    assert picture.full == (low * 0.5 - 24, high * 0.5 - 24)
    assert picture.own == (-24.5, 39.5)
    seen = np.rint(np.clip((values + 24.5) * 255 / 64, 0, 255))
    assert np.array_equal(to_8_bits(picture, None), 255 - seen if photometric == "MONOCHROME1" else seen)


@pytest.mark.parametrize(
    ("elements", "value"),
    [
        ({}, 1064),
        ({"RescaleIntercept": -1024}, 40),
        ({"RescaleIntercept": -1024, "RescaleSlope": ""}, 40),
        ({"RescaleSlope": 2}, 2128),
        ({"RescaleSlope": 2, "RescaleIntercept": ""}, 2128),
        ({"RescaleSlope": "", "RescaleIntercept": ""}, 1064),
    ],
)
@pytest.mark.usefixtures("folder")
def test_slope_and_intercept_default_to_1_and_0(elements: dict[str, Any], value: float) -> None:
    assert (read(np.full((4, 4), 1064), **elements).values == value).all()


@pytest.mark.parametrize("groups", ["SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"])
@pytest.mark.parametrize("syntax", NATIVE)
@pytest.mark.usefixtures("folder")
def test_functional_groups_of_one_frame(groups: str, syntax: str) -> None:
    values = item(RescaleSlope=1, RescaleIntercept=-1024, RescaleType="HU")
    window = item(WindowCenter=40, WindowWidth=401)
    group: Any = item(PixelValueTransformationSequence=values, FrameVOILUTSequence=window)
    picture = read(
        np.full((4, 4), 1064),
        syntax=syntax,
        NumberOfFrames=1,
        WindowCenter=1000,
        WindowWidth=10,
        VOILUTFunction="SIGMOID",
        **dict[str, Any]({groups: group}),
    )
    assert (picture.values == 40).all()
    assert picture.own == (-160.5, 239.5)


@pytest.mark.usefixtures("folder")
def test_functional_groups_are_read_within_the_limits() -> None:
    """Two million empty items in a sequence of known length, which pydicom parses as a whole."""
    path = write(np.full((4, 4), 7))
    content = path.read_bytes()
    at = content.index(struct.pack("<HH", 0x7FE0, 0x0010))
    items = struct.pack("<HHL", 0xFFFE, 0xE000, 0) * 2_000_000
    head = struct.pack("<HH2sHL", 0x5200, 0x9229, b"SQ", 0, len(items))
    path.write_bytes(content[:at] + head + items + content[at:])
    with pytest.raises(ImageError, match="elements and sequence items of a DICOM file"):
        dicom.read_image(path)


@pytest.mark.parametrize(
    ("stored", "elements", "seen"),
    [
        # GE: unsigned CT with 63536 outside of the patient.
        ([[63536, 1064, 1164]], {"PixelPaddingValue": 63536, "RescaleIntercept": -1024}, [0, 128, 191]),
        ([[0, 1064, 1164]], {"PixelPaddingValue": 0, "RescaleIntercept": -1024}, [0, 128, 191]),
        (
            [[61000, 63536, 1064]],
            {
                "PixelPaddingValue": 63536,
                "PixelPaddingRangeLimit": 60000,
                "RescaleIntercept": -1024,
            },
            [0, 0, 128],
        ),
        # Mammography: 0 would be white.
        ([[0, 40, 140]], {"PixelPaddingValue": 0, "PhotometricInterpretation": "MONOCHROME1"}, [0, 127, 64]),
        ([[0, 40, 140]], {"PixelPaddingValue": 0, "PresentationLUTShape": "inverse "}, [0, 127, 64]),
        ([[907, 907, 907]], {"PixelPaddingValue": 907, "RescaleIntercept": -200}, [0, 0, 0]),
    ],
)
@pytest.mark.usefixtures("folder")
def test_padding_is_black(stored: list[list[int]], elements: dict[str, Any], seen: list[int]) -> None:
    assert to_8_bits(read(stored, **elements), (-160.0, 240.0))[0].tolist() == seen


@pytest.mark.parametrize("value", [-2000, 63536])
@pytest.mark.usefixtures("folder")
def test_padding_that_is_dark_already_keeps_its_value(value: int) -> None:
    """So that the hash of such an image stays what it was; 63536 is -2000 in unsigned 16 bits."""
    path = write(np.array([[-2000, 40, 90]]), signed=True)
    content = path.read_bytes()
    kind = b"SS" if value < 0 else b"US"
    element = struct.pack("<HH2sHH", 0x0028, 0x0120, kind, 2, value & 0xFFFF)
    at = content.index(struct.pack("<HH", 0x7FE0, 0x0010))
    path.write_bytes(content[:at] + element + content[at:])
    assert dicom.read_image(path).values.tolist() == [[-2000, 40, 90]]


@pytest.mark.usefixtures("folder")
def test_padding_is_found_where_it_exceeds_the_stored_bits() -> None:
    picture = read([[63536, 100, 4095]], 12, PixelPaddingValue=63536)
    assert picture.values.tolist() == [[0, 100, 4095]]


@pytest.mark.usefixtures("folder")
def test_bits_above_the_stored_ones() -> None:
    # The sign is missing in the upper bits: -1 in 12 bits is 0x0FFF.
    assert read([[0x0FFF, 0x0800, 5]], 12, signed=True).values.tolist() == [[-1, -2048, 5]]
    with pytest.raises(ImageError, match=r"BitsStored is 12, and its pixels hold 5 to 5000; correct"):
        read([[5000, 5]], 12)
    with pytest.raises(ImageError, match=r"HighBit is 15 and BitsStored is 12.*convert it to HighBit 11"):
        read([[160, 80]], 12, HighBit=15)
    path = write(np.array([[0x8005, 7]]), 12)
    dataset = pydicom.dcmread(path)
    dataset.add_new(0x60000102, "US", 15)  # the highest bit is an overlay
    dataset.save_as(path)
    assert dicom.read_image(path).values.tolist() == [[5, 7]]


@pytest.mark.parametrize(
    ("photometric", "shape", "inverted"),
    [
        ("MONOCHROME2", "IDENTITY", False),
        ("MONOCHROME2", "INVERSE", True),
        ("MONOCHROME1", "INVERSE", True),
        (" monochrome1", "IDENTITY", True),
        ("monochrome2", "", False),
    ],
)
@pytest.mark.usefixtures("folder")
def test_what_is_bright(photometric: str, shape: str, inverted: bool) -> None:
    picture = read([[0, 255]], 8, PhotometricInterpretation=photometric, PresentationLUTShape=shape)
    assert picture.values.shape == (1, 2)
    assert to_8_bits(picture, None).tolist() == ([[255, 0]] if inverted else [[0, 255]])
    assert dicom.read_header(Path("x.dcm")).channels == 1


@pytest.mark.parametrize(
    ("elements", "message"),
    [
        ({"PhotometricInterpretation": None}, "has no PhotometricInterpretation"),
        ({"PhotometricInterpretation": ""}, "has no PhotometricInterpretation"),
        ({"PhotometricInterpretation": "CMYK"}, "PhotometricInterpretation CMYK is not supported"),
        ({"PhotometricInterpretation": "RGB"}, "RGB with SamplesPerPixel 1 is contradictory"),
        ({"SamplesPerPixel": 3}, "MONOCHROME2 with SamplesPerPixel 3 is contradictory"),
        ({"PresentationLUTShape": "LIN OD"}, "PresentationLUTShape LIN OD is not supported"),
        ({"PixelPaddingValue": [1, 2]}, "its PixelPaddingValue is not a number"),
        ({"RescaleSlope": [1, 2]}, "its RescaleSlope is not a number"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_what_contradicts_itself_is_refused(elements: dict[str, Any], message: str) -> None:
    with pytest.raises(ImageError, match=rf"x\.dcm: {message}"):
        read([[0, 4]], 8, **elements)


@pytest.mark.usefixtures("folder")
def test_a_window_that_cannot_be_applied_needs_another_one() -> None:
    table = item(LUTDescriptor=[1000, 0, 8], LUTData=[0] * 1000)
    table[0]["LUTData"].VR = "US"
    cases: dict[str, dict[str, Any]] = {
        "its VOI look-up table cannot be applied: 1000 entries of 8 bits": {"VOILUTSequence": table},
        "its window has the function LOG": {"VOILUTFunction": "LOG"},
        "its window has the center 40 and the width -2": {"WindowWidth": -2, "VOILUTFunction": "SIGMOID"},
        "its window has the center 40 and the width -5": {"WindowWidth": -5},
        "its window has the center 40 and the width 0.5": {"WindowWidth": 0.5},
    }
    for message, elements in cases.items():
        window = {} if "VOILUTSequence" in elements else {"WindowCenter": 40, "WindowWidth": 400}
        picture = read([[-160, 240]], signed=True, **window | elements)
        with pytest.raises(ImageError, match=rf"x\.dcm: {message}.*; set data\.window=\[low, high\]"):
            to_8_bits(picture, None)
        assert to_8_bits(picture, (-160.0, 240.0)).tolist() == [[0, 255]]


@pytest.mark.usefixtures("folder")
def test_a_malformed_window_matters_only_if_it_is_used() -> None:
    path = write(np.array([[-160, 240]]), signed=True, WindowCenter="4000", WindowWidth="400")
    path.write_bytes(path.read_bytes().replace(b"4000", b"4O,O"))
    picture = dicom.read_image(path)
    assert to_8_bits(picture, (-160.0, 240.0)).tolist() == [[0, 255]]
    with pytest.raises(
        ImageError, match=r"its WindowCenter and WindowWidth are not one number each; set data\.window"
    ):
        to_8_bits(picture, None)


@pytest.mark.parametrize(("center", "width"), [(40, 1), (0, 1), (-3000, 1), (40, 2), (40.5, 100)])
@pytest.mark.usefixtures("folder")
def test_a_narrow_window_is_that_of_pydicom(center: float, width: float) -> None:
    stored = np.array([[-3001, -3000, -1, 0, 38, 39, 40, 41, 90]])
    picture = read(stored, signed=True, WindowCenter=center, WindowWidth=width)
    expected = apply_windowing(picture.values, pydicom.dcmread("x.dcm"))
    seen = (expected + 32768) * 255 / 65535
    assert np.abs(to_8_bits(picture, None) - seen).max() <= 0.501


@pytest.mark.usefixtures("folder")
def test_a_modality_look_up_table_of_signed_pixels() -> None:
    table = item(LUTDescriptor=[4, 2, 16], LUTData=[900, 10, 20, 30])
    table[0]["LUTDescriptor"].VR = table[0]["LUTData"].VR = "US"
    picture = read([[-32768, 2, 3, 4, 5, 32767]], signed=True, ModalityLUTSequence=table)
    assert picture.values.tolist() == [[900, 900, 10, 20, 30, 30]]
    assert picture.full == (10, 900)  # the table falls, then rises


def test_a_palette_in_big_endian_is_the_same_palette() -> None:
    names = ("gdcm-US-ALOKA-16.dcm", "gdcm-US-ALOKA-16_big.dcm")
    first, second = (dicom.read_image(Path(str(get_testdata_file(name)))) for name in names)
    assert np.array_equal(first.values, second.values)
    assert (first.corrected, second.corrected) == ((), ("big-endian DICOM with a palette",))
    assert len(np.unique(first.values)) > 50


@pytest.mark.parametrize(("bits", "first"), [(8, 0), (8, 3), (16, 0), (16, 3)])
@pytest.mark.usefixtures("folder")
def test_indices_beyond_a_palette_take_its_ends(bits: int, first: int) -> None:
    table = np.array([10, 20, 30, 40], np.uint8 if bits == 8 else np.uint16) * (1 if bits == 8 else 256)
    palette: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for color in ("Red", "Green", "Blue"):
        palette[f"{color}PaletteColorLookupTableDescriptor"] = [4, first, bits]
        palette[f"{color}PaletteColorLookupTableData"] = table.tobytes()
    values = read([[0, 3, 4, 300, 65535]], **palette).values
    places = np.clip(np.array([0, 3, 4, 300, 65535]) - first, 0, 3)
    assert values[0].tolist() == [[10 * (place + 1)] * 3 for place in places]
