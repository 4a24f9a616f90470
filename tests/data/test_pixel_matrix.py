"""Pixels over a matrix of depths, colors, orientations and transfer syntaxes, against other readings."""

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom.pixels.processing import convert_color_space

from src.data import dicom, pillow_images
from src.data.pixels import ImageError, to_8_bits
from tests.data.test_dicom_values import NATIVE
from tests.data.test_dicom_values import write as write_dicom
from tests.data.test_pillow_images import exif, ramp, turned
from tests.pngs import write_png

pytestmark = pytest.mark.usefixtures("folder")
SYNTAXES = [*NATIVE, "RLE"]


def noise(top: int, *shape: int, dtype: type = np.uint8) -> NDArray[Any]:
    return np.random.default_rng(top).integers(0, top + 1, shape).astype(dtype)


@pytest.mark.parametrize("interlaced", [False, True], ids=["plain", "Adam7"])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_gray_png(bits: int, interlaced: bool) -> None:
    top = (1 << bits) - 1
    stored = noise(top, 11, 13, dtype=np.uint16 if bits == 16 else np.uint8)
    path = write_png(Path("x.png"), stored, bits=bits, interlaced=interlaced)
    picture = pillow_images.read_image(path)
    if bits == 16:
        assert np.array_equal(picture.values, stored)
    seen = np.rint(stored * (255 / top)) if bits == 16 else stored.astype(int) * 255 // top
    assert np.array_equal(to_8_bits(picture, None), seen)
    assert pillow_images.read_header(path).channels == 1


@pytest.mark.parametrize("interlaced", [False, True], ids=["plain", "Adam7"])
@pytest.mark.parametrize("samples", [2, 3, 4])
def test_colour_png(samples: int, interlaced: bool) -> None:
    """On black: color times opacity (PNG 1.2, 10.8), rounded."""
    stored = noise(255, 11, 13, samples)
    values = pillow_images.read_image(write_png(Path("x.png"), stored, interlaced=interlaced)).values
    color = stored[..., 0] if samples == 2 else stored[..., :3]
    opacity = stored[..., -1].astype(int) if samples in (2, 4) else np.full((11, 13), 255)
    expected = color * (opacity if samples == 2 else opacity[..., None]) / 255
    assert values.shape == expected.shape
    assert np.abs(values - expected).max() <= 0.5 + 1e-9


@pytest.mark.parametrize("interlaced", [False, True], ids=["plain", "Adam7"])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_png_with_a_palette(bits: int, interlaced: bool) -> None:
    places, palette = noise((1 << bits) - 1, 11, 13), noise(255, 1 << bits, 3)
    chunk = (b"PLTE", palette.tobytes())
    path = write_png(Path("x.png"), places, chunk, bits=bits, has_palette=True, interlaced=interlaced)
    assert np.array_equal(pillow_images.read_image(path).values, palette[places])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("samples", [0, 3])
@pytest.mark.parametrize("kind", ["JPEG", "WebP"])
def test_other_formats_in_each_orientation(kind: str, samples: int, orientation: int) -> None:
    if kind == "WebP" and not samples:
        pytest.skip("WebP has no gray")
    stored = Image.fromarray(turned(ramp(np.uint8, samples), orientation))
    options: dict[str, Any] = {"lossless": True} if kind == "WebP" else {"quality": 95}
    stored.save("x.img", kind, exif=exif(orientation), **options)
    values = pillow_images.read_image(Path("x.img")).values
    assert values.shape == ramp(np.uint8, samples).shape
    assert np.abs(values.astype(int) - ramp(np.uint8, samples)).max() <= (0 if kind == "WebP" else 12)


@pytest.mark.parametrize("order", ["<", ">"], ids=["II", "MM"])
@pytest.mark.parametrize("photometric", [0, 1], ids=["WhiteIsZero", "BlackIsZero"])
@pytest.mark.parametrize("bits", [1, 4, 8, 16])
def test_gray_tiff(bits: int, photometric: int, order: str) -> None:
    top, width = (1 << bits) - 1, 13
    stored = noise(top, 11, width, dtype=np.uint16 if bits == 16 else np.uint8)
    if bits < 8:
        rows = [np.packbits(np.unpackbits(row[:, None], axis=1)[:, -bits:]).tobytes() for row in stored]
    else:
        rows = [row.astype(row.dtype.newbyteorder(order)).tobytes() for row in stored]
    data = b"".join(rows)
    tags = {256: width, 257: 11, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: 11, 279: len(data)}
    entries = b"".join(struct.pack(f"{order}HHLHH", tag, 3, 1, value, 0) for tag, value in tags.items())
    directory = struct.pack(f"{order}H", len(tags)) + entries + bytes(4)
    mark = {"<": b"II", ">": b"MM"}[order]
    Path("x.tif").write_bytes(mark + struct.pack(f"{order}HL", 42, 8 + len(data)) + data + directory)
    seen = np.rint(stored * (255 / top)) if bits == 16 else stored.astype(int) * 255 // top
    expected = seen if photometric else 255 - seen
    if (bits, photometric, order) == (16, 0, ">"):  # Pillow does not know it
        with pytest.raises(ImageError, match=r"x\.tif: not an image that can be read.*convert it to PNG"):
            pillow_images.read_image(Path("x.tif"))
        return
    assert np.array_equal(to_8_bits(pillow_images.read_image(Path("x.tif")), None), expected)


@pytest.mark.parametrize("planar", [0, 1], ids=["by pixel", "by plane"])
@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL"])
@pytest.mark.parametrize("syntax", SYNTAXES)
def test_colour_dicom(syntax: str, photometric: str, planar: int) -> None:
    """An odd number of bytes, which are padded (PS3.5, 8.1.1); YBR_FULL is that of PS3.3, C.7.6.3.1.2."""
    if syntax == "RLE" and planar:
        pytest.skip("pydicom encodes pixels that lie side by side, and stores them by plane")
    stored = noise(255, 5, 7, 3)
    data = np.ascontiguousarray(stored.transpose(2, 0, 1) if planar else stored).tobytes()
    path = write_dicom(
        stored,
        8,
        syntax=syntax,
        SamplesPerPixel=3,
        PlanarConfiguration=planar,
        PhotometricInterpretation=photometric,
        PixelData=data if syntax == "RLE" else data + b"\0",
    )
    values = dicom.read_image(path).values
    if photometric == "RGB":
        assert np.array_equal(values, stored)
        return
    y, cb, cr = stored[..., 0].astype(float), stored[..., 1] - 128.0, stored[..., 2] - 128.0
    rgb = np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], axis=-1)
    assert np.abs(values - rgb.clip(0, 255)).max() <= 1
    assert np.array_equal(values, convert_color_space(stored, "YBR_FULL", "RGB"))


@pytest.mark.parametrize("syntax", NATIVE)
def test_dicom_whose_colors_are_shared_by_two_pixels(syntax: str) -> None:
    """YBR_FULL_422 stores Y1 Y2 Cb Cr (PS3.3, C.7.6.3.1.2)."""
    packed = noise(255, 4, 3, 4)
    path = write_dicom(
        np.zeros((4, 6)),
        8,
        syntax=syntax,
        SamplesPerPixel=3,
        PlanarConfiguration=0,
        PhotometricInterpretation="YBR_FULL_422",
        PixelData=packed.tobytes(),
    )
    full = np.stack([np.stack([packed[..., i], packed[..., 2], packed[..., 3]], -1) for i in (0, 1)], axis=2)
    expected = convert_color_space(full.reshape(4, 6, 3), "YBR_FULL", "RGB")
    assert np.array_equal(dicom.read_image(path).values, expected)


@pytest.mark.parametrize(("bits", "entries"), [(8, 8), (8, 16), (16, 8), (16, 16)])
@pytest.mark.parametrize("syntax", SYNTAXES)
def test_dicom_with_a_palette(syntax: str, bits: int, entries: int) -> None:
    places = noise(255, 6, 8, dtype=np.uint16 if bits == 16 else np.uint8)
    tables = noise((1 << entries) - 1, 256, 3, dtype=np.uint16 if entries == 16 else np.uint8)
    palette: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for number, color in enumerate(("Red", "Green", "Blue")):
        words = np.frombuffer(np.ascontiguousarray(tables[:, number]).tobytes(), "<u2")
        data = words.astype(">u2" if syntax == "big endian" else "<u2").tobytes()
        palette[f"{color}PaletteColorLookupTableDescriptor"] = [256, 0, entries]
        palette[f"{color}PaletteColorLookupTableData"] = data
    values = dicom.read_image(write_dicom(places, bits, syntax=syntax, **palette)).values
    assert np.array_equal(values, tables[places] >> (entries - 8))


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_gray_dicom_is_what_pydicom_reads(bits: int, signed: bool, photometric: str) -> None:
    low = -(1 << bits - 1) if signed else 0
    stored = noise((1 << bits) - 1, 5, 7, dtype=np.int64) + low
    path = write_dicom(stored, bits, signed=signed, PhotometricInterpretation=photometric)
    content = io.BytesIO(path.read_bytes())
    assert np.array_equal(dicom.read_image(path).values, pydicom.dcmread(content).pixel_array)
