"""Pixels of ordinary image files, against pixels that were known before and a reader of our own."""

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from src.data.pillow_images import read_header, read_image
from src.data.pixels import ImageError, to_8_bits
from tests.pngs import read_png, write_png

pytestmark = pytest.mark.usefixtures("folder")
ORIENTATION = 0x112


def ramp(dtype: type, samples: int = 0) -> NDArray[Any]:
    """Pixels that differ along both axes and between samples."""
    top = np.iinfo(dtype).max // 255
    gray = np.add.outer(np.arange(20) * 7, np.arange(30) * 4) * top
    shifts = [gray + 3 * top * number for number in range(samples)]
    return (np.stack(shifts, axis=-1) if samples else gray).astype(dtype)


def turned(upright: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Return what a camera stores for an upright image with some orientation (EXIF 2.3, 4.6.4)."""
    first_row_is = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: np.rot90(upright),
        7: upright[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(upright, -1),
    }
    return np.ascontiguousarray(first_row_is[orientation])


def exif(orientation: int) -> Image.Exif:
    found = Image.Exif()
    found[ORIENTATION] = orientation
    return found


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("dtype", "samples"), [(np.uint8, 0), (np.uint8, 3), (np.uint16, 0)])
def test_tiff_in_each_orientation(dtype: type, samples: int, orientation: int, compression: str) -> None:
    upright = ramp(dtype, samples)
    image = Image.fromarray(turned(upright, orientation))
    image.save("x.tif", exif=exif(orientation), compression=compression)
    assert np.array_equal(read_image(Path("x.tif")).values, upright)
    header = read_header(Path("x.tif"))
    assert (header.height, header.width) == upright.shape[:2]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("dtype", "samples"), [(np.uint8, 0), (np.uint8, 2), (np.uint8, 3), (np.uint8, 4), (np.uint16, 0)]
)
def test_png_in_each_orientation(dtype: type, samples: int, orientation: int) -> None:
    upright = ramp(dtype, samples)
    if samples in (2, 4):
        upright[..., -1] = 255
    chunk = (b"eXIf", exif(orientation).tobytes().removeprefix(b"Exif\0\0"))
    path = write_png(Path("x.png"), turned(upright, orientation), chunk)
    expected = upright[..., 0] if samples == 2 else upright[..., :3] if samples else upright
    assert np.array_equal(read_image(path).values, expected)


@pytest.mark.parametrize("mode", ["L", "I;16", "RGB"])
def test_png_as_another_program_writes_it_is_what_our_reader_reads(mode: str) -> None:
    noise = np.random.default_rng(3).normal(0, 9, (20, 30, 3))
    pixels = (ramp(np.uint8, 3) * 0.8 + 30 + noise).astype(np.uint8)
    image = Image.fromarray(pixels if mode == "RGB" else pixels[..., 0])
    if mode == "I;16":
        image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257 + 3)
    image.save("x.png", optimize=True)
    assert np.array_equal(read_image(Path("x.png")).values, np.squeeze(read_png(Path("x.png"))))


@pytest.mark.parametrize("samples", [2, 3, 4])
def test_colour_of_16_bits_is_refused(samples: int) -> None:
    path = write_png(Path("x.png"), ramp(np.uint16, samples))
    assert np.array_equal(read_png(path), ramp(np.uint16, samples))
    for read in (read_image, read_header):
        with pytest.raises(ImageError, match=r"x\.png: color.*of more than 8 bits.*convert it to 8 bits"):
            read(path)


@pytest.mark.parametrize("content", [b"P6 2 1 4095\n" + bytes(12), b"P3 2 1 256\n1 2 3 4 5 6\n"])
def test_colour_of_16_bits_in_ppm_is_refused(content: bytes) -> None:
    Path("x.png").write_bytes(content)
    with pytest.raises(ImageError, match="of more than 8 bits"):
        read_image(Path("x.png"))


def tiff(pixels: NDArray[Any], photometric: int, sample_format: int = 1) -> Path:
    """Write ``x.tif`` without compression, with one strip."""
    height, width, *samples = pixels.shape
    count, bits = samples[0] if samples else 1, 8 * pixels.dtype.itemsize
    tags = {256: width, 257: height, 259: 1, 262: photometric, 277: count, 278: height, 339: sample_format}
    at = 8 + pixels.nbytes
    extra = struct.pack(f"<{count}H", *[bits] * count)
    kinds = [(tag, 3, 1, value) for tag, value in tags.items()]
    kinds += [(258, 3, count, bits if count == 1 else at), (273, 4, 1, 8), (279, 4, 1, pixels.nbytes)]
    entries = b"".join(struct.pack("<HHLL", *kind) for kind in sorted(kinds))
    directory = struct.pack("<H", len(kinds)) + entries + bytes(4)
    header = struct.pack("<2sHL", b"II", 42, at + len(extra))
    Path("x.tif").write_bytes(
        header + pixels.astype(pixels.dtype.newbyteorder("<")).tobytes() + extra + directory
    )
    return Path("x.tif")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_tiff_whose_zero_is_white(dtype: type) -> None:
    stored, top = ramp(dtype), np.iinfo(dtype).max
    for photometric, expected in ((0, 255 - stored // (top // 255)), (1, stored // (top // 255))):
        picture = read_image(tiff(stored, photometric))
        assert np.array_equal(to_8_bits(picture, None), expected)
    if dtype is np.uint16:  # the window is in the values of the file
        assert to_8_bits(read_image(tiff(stored, 0)), (0.0, 257.0 * 28))[:5, 0].tolist() == [
            255,
            191,
            127,
            64,
            0,
        ]


def test_tiff_of_other_samples_is_refused() -> None:
    with pytest.raises(ImageError, match=r"x\.tif: signed pixels are not supported"):
        read_image(tiff(ramp(np.uint8), 1, sample_format=2))
    with pytest.raises(ImageError, match=r"x\.tif: pixels of kind 'I'.*unsigned 8 or 16 bits"):
        read_image(tiff(ramp(np.uint16), 1, sample_format=2))
    with pytest.raises(ImageError, match=r"x\.tif: color.*of more than 8 bits"):
        read_image(tiff(ramp(np.uint16, 3), 2))


@pytest.mark.parametrize("orientation", [1, 6])
def test_the_first_picture_of_a_phone_s_jpeg_is_taken(orientation: int) -> None:
    image, other = Image.fromarray(turned(ramp(np.uint8, 3), orientation)), Image.new("RGB", (16, 16))
    image.save("plain.jpg", exif=exif(orientation), quality=95)
    image.save(
        "x.jpg", format="MPO", save_all=True, append_images=[other], exif=exif(orientation), quality=95
    )
    with Image.open("x.jpg") as opened:
        assert opened.format == "MPO"
    found = read_image(Path("x.jpg")).values
    assert np.array_equal(found, read_image(Path("plain.jpg")).values)
    assert np.abs(found.astype(int) - ramp(np.uint8, 3)).max() < 12


def test_what_has_pages_is_refused() -> None:
    frames = [Image.fromarray(ramp(np.uint8) + number) for number in range(3)]
    for name in ("x.tif", "x.png", "x.gif"):
        frames[0].save(name, save_all=True, append_images=frames[1:])
        with pytest.raises(ImageError, match="holds several pages"):
            read_image(Path(name))


@pytest.mark.parametrize("samples", [2, 4])
def test_transparent_pixels_are_black(samples: int) -> None:
    pixels = np.full((1, 3, samples), 200, np.uint8)
    pixels[0, :, -1] = 255, 0, 128
    values = read_image(write_png(Path("x.png"), pixels)).values
    expected = np.array([200, 0, 100])
    assert np.array_equal(values[0], expected if samples == 2 else np.stack([expected] * 3, axis=1))
    pixels[..., -1] = 0
    with pytest.raises(ImageError, match=r"x\.png: all pixels are transparent; remove the transparency"):
        read_image(write_png(Path("x.png"), pixels))


@pytest.mark.parametrize(("dtype", "samples"), [(np.uint8, 0), (np.uint8, 3), (np.uint16, 0)])
def test_the_value_that_a_png_names_as_transparent_is_black(dtype: type, samples: int) -> None:
    pixels = ramp(dtype, samples)
    value = [int(number) for number in np.atleast_1d(pixels[0, 9])]
    path = write_png(Path("x.png"), pixels, (b"tRNS", struct.pack(f">{len(value)}H", *value)))
    matches = pixels == pixels[0, 9]
    expected = pixels.copy()
    expected[matches.all(axis=-1) if samples else matches] = 0
    assert np.array_equal(read_image(path).values, expected)
    assert expected[0, 9].max() == 0 < expected[0, 10].max()


def test_a_transparent_color_of_a_palette_is_black() -> None:
    image = Image.fromarray(ramp(np.uint8, 3)).quantize(8)
    image.save("x.png", transparency=3)
    expected = np.array(image.convert("RGB"))
    expected[np.asarray(image) == 3] = 0
    assert np.array_equal(read_image(Path("x.png")).values, expected)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    Path("y.png").write_bytes(buffer.getvalue())
    assert np.array_equal(read_image(Path("y.png")).values, np.asarray(image.convert("RGB")))


def test_what_earlier_versions_read_wrongly_is_known() -> None:
    deep, gray = ramp(np.uint16), ramp(np.uint8)
    found = {}
    for orientation in (1, 3, 6):
        for name, pixels, compression in (
            ("deep", deep, "raw"),
            ("raw", gray, "raw"),
            ("lzw", gray, "tiff_lzw"),
        ):
            Image.fromarray(pixels).save("x.tif", exif=exif(orientation), compression=compression)
            found[name, orientation] = read_image(Path("x.tif")).corrected
    assert {what: told for what, told in found.items() if told} == {
        ("deep", 3): ("16-bit image with an orientation",),
        ("deep", 6): ("16-bit image with an orientation",),
        ("raw", 6): ("uncompressed TIFF with an orientation of 5 to 8",),
    }
    assert read_image(tiff(deep, photometric=0)).corrected == ("16-bit TIFF with WhiteIsZero",)
    for alpha, told in ((255, ()), (254, ("image with transparent pixels",))):
        image = Image.fromarray(gray).convert("LA")
        image.putpixel((0, 0), (7, alpha))
        image.save("x.png")
        assert read_image(Path("x.png")).corrected == told
