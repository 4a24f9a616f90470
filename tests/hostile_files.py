"""Files that would wait for ever, or become gigabytes, if they were opened as they ask to be."""

import io
import os
import socket
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydicom import Dataset, FileMetaDataset, dcmwrite
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
    SecondaryCaptureImageStorage,
)

from tests.images import make_images

MIB = 2**20
_ZEROS = bytes(MIB)
_UNKNOWN = 0xFFFFFFFF


def pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def device(path: Path) -> None:
    """A link to a device that never ends."""
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


def unix_socket(path: Path) -> None:
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listening:
        # A socket's path is at most a hundred bytes.
        here = Path.cwd()
        os.chdir(path.parent)
        listening.bind(path.name)
        os.chdir(here)


KINDS: dict[str, tuple[Callable[[Path], None], str]] = {
    "pipe": (pipe, "is a named pipe, not a regular file"),
    "device": (device, "is a character device, not a regular file"),
    "socket": (unix_socket, "is a socket, not a regular file"),
}


def zeros(size: int, start: bytes = b"") -> bytes:
    """A raw deflate stream of a start and so many MiB of zeros; made at once, whatever it inflates to."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    first = packer.compress(start) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(MIB)) + packer.flush(zlib.Z_FULL_FLUSH)
    return first + block * size + packer.flush()


def dicom_of(syntax: UID = ExplicitVRLittleEndian, /, **elements: Any) -> Dataset:
    """A gray image of 64 x 64 pixels of 16 bits, without pixels; or with other elements."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.SOPClassUID = SecondaryCaptureImageStorage
    dataset.SOPInstanceUID = "1.2.3"
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows = dataset.Columns = 64
    dataset.SamplesPerPixel, dataset.PixelRepresentation = 1, 0
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit = 15
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return dataset


def encoded(dataset: Dataset) -> tuple[bytes, bytes]:
    """The bytes of a DICOM file: up to its elements, and the elements, not deflated."""
    syntax = dataset.file_meta.TransferSyntaxUID
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    whole = io.BytesIO()
    dcmwrite(whole, dataset, enforce_file_format=True)
    dataset.file_meta.TransferSyntaxUID = syntax
    alone, named = Dataset(), io.BytesIO()
    alone.file_meta = dataset.file_meta
    alone.SOPClassUID, alone.SOPInstanceUID = dataset.SOPClassUID, dataset.SOPInstanceUID
    if syntax == DeflatedExplicitVRLittleEndian:
        dcmwrite(named, alone, enforce_file_format=True)
        start = 144 + struct.unpack_from("<L", named.getvalue(), 140)[0]
        there = 144 + struct.unpack_from("<L", whole.getvalue(), 140)[0]
        return named.getvalue()[:start], whole.getvalue()[there:]
    start = 144 + struct.unpack_from("<L", whole.getvalue(), 140)[0]
    return whole.getvalue()[:start], whole.getvalue()[start:]


def pixels_of(size: int) -> bytes:
    """The start of an element of pixels."""
    return struct.pack("<HH2sHL", 0x7FE0, 0x10, b"OW", 0, size)


def deflated_dicom(path: Path) -> None:
    """4 MB that hold 4 GB."""
    start, elements = encoded(dicom_of(DeflatedExplicitVRLittleEndian))
    path.write_bytes(start + zeros(4096, elements + pixels_of(_UNKNOWN - 15)))


def deflated_private(path: Path) -> None:
    """The same, before the image's size."""
    start, _ = encoded(dicom_of(DeflatedExplicitVRLittleEndian))
    path.write_bytes(start + zeros(4095, struct.pack("<HH2sHL", 9, 0x10, b"OB", 0, 4095 * MIB)))


def long_dicom(path: Path, **elements: int) -> None:
    """An image of many frames that are not even on the disk."""
    dataset = dicom_of(**elements)
    start, rest = encoded(dataset)
    size = 2 * dataset.Rows * dataset.Columns * int(dataset.get("NumberOfFrames", 1))
    path.write_bytes(start + rest + pixels_of(min(size, _UNKNOWN - 15)))
    os.truncate(path, path.stat().st_size + min(size, 2**31))


def deflated_frames(path: Path) -> None:
    """1,500 frames of 512 x 512 pixels, deflated."""
    dataset = dicom_of(DeflatedExplicitVRLittleEndian, Rows=512, Columns=512, NumberOfFrames=1500)
    start, elements = encoded(dataset)
    path.write_bytes(start + zeros(750, elements + pixels_of(750 * MIB)))


def many_items(path: Path) -> None:
    """Two million items of a sequence, each of eight bytes, before the image's size."""
    start, rest = encoded(dicom_of())
    sequence = struct.pack("<HH2sHL", 8, 0x1140, b"SQ", 0, _UNKNOWN)
    items = struct.pack("<HHL", 0xFFFE, 0xE000, 0) * 2_000_000
    end = struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
    path.write_bytes(start + sequence + items + end + rest)


def deep_dicom(path: Path) -> None:
    """Fifty thousand sequences in each other."""
    start, rest = encoded(dicom_of())
    inner = struct.pack("<HH2sHL", 8, 0x1140, b"SQ", 0, _UNKNOWN)
    inner += struct.pack("<HHL", 0xFFFE, 0xE000, _UNKNOWN)
    path.write_bytes(start + inner * 50_000 + rest)


def run_lengths(path: Path) -> None:
    """Compressed pixels that are far longer than the image."""
    dataset = dicom_of(RLELossless)
    header = struct.pack("<16L", 2, 64, 64, *[0] * 13)
    dataset.PixelData = encapsulate([header + b"\x81\x00" * (8 * MIB)])
    dataset["PixelData"].VR = "OB"
    dcmwrite(path, dataset, enforce_file_format=True)


def j2k_code(width: int, height: int) -> bytes:
    """The start of a JPEG 2000 image of one gray component."""
    size = struct.pack(
        ">HHHLLLLLLLLHBBB", 0xFF51, 41, 0, width, height, 0, 0, width, height, 0, 0, 1, 7, 1, 1
    )
    coding = struct.pack(">HHBBHBBBBBB", 0xFF52, 12, 0, 0, 1, 0, 0, 4, 4, 0, 1)
    quantization = struct.pack(">HHBB", 0xFF5C, 4, 0x40, 0x40)
    tile = struct.pack(">HHHLBBH", 0xFF90, 10, 0, 14, 0, 1, 0xFF93)
    return b"\xff\x4f" + size + coding + quantization + tile + b"\xff\xd9"


def wide_j2k(path: Path) -> None:
    """A header of 64 x 64 pixels, and a compressed image of 60,000 x 60,000."""
    dataset = dicom_of(JPEG2000Lossless, BitsAllocated=8, BitsStored=8, HighBit=7)
    dataset.PixelData = encapsulate([j2k_code(60_000, 60_000)])
    dataset["PixelData"].VR = "OB"
    dcmwrite(path, dataset, enforce_file_format=True)


def long_palette(path: Path) -> None:
    """Segments of 65,535 colors each, six bytes a piece."""
    segments = struct.pack("<HHH", 0, 1, 0) + struct.pack("<HHH", 1, 65535, 9) * 10_000
    colors: dict[str, Any] = {
        f"{kind}{color}PaletteColorLookupTable{what}": value
        for color in ("Red", "Green", "Blue")
        for kind, what, value in (("", "Descriptor", [0, 0, 16]), ("Segmented", "Data", segments))
    }
    dataset = dicom_of(PhotometricInterpretation="PALETTE COLOR", PixelData=bytes(2 * 64 * 64), **colors)
    dataset["PixelData"].VR = "OW"
    dcmwrite(path, dataset, enforce_file_format=True)


def png_with(path: Path, name: bytes, content: bytes) -> None:
    """A PNG with one more chunk before its pixels."""
    whole = io.BytesIO()
    Image.new("L", (8, 8)).save(whole, "PNG")
    data = whole.getvalue()
    chunk = struct.pack(">L", len(content)) + name + content
    path.write_bytes(data[:33] + chunk + struct.pack(">L", zlib.crc32(name + content)) + data[33:])


def text_bomb(path: Path) -> None:
    png_with(path, b"zTXt", b"comment\0\0" + zlib.compress(bytes(256 * MIB), 1))


def many_pages(path: Path, pages: int = 300_000) -> None:
    """A TIFF of pages without anything in them."""
    entries = [(256, 4, 8), (257, 4, 8), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 8), (279, 4, 64)]
    body = b"".join(struct.pack("<HHLL", tag, kind, 1, value) for tag, kind, value in entries)
    directory, size = struct.pack("<H", len(entries)) + body, 2 + 12 * len(entries) + 4
    start = struct.pack("<2sHL", b"II", 42, 72) + bytes(64)
    nexts = [72 + size * (page + 1) for page in range(pages - 1)] + [0]
    path.write_bytes(start + b"".join(directory + struct.pack("<L", offset) for offset in nexts))


def wide_jp2(path: Path) -> None:
    path.write_bytes(j2k_code(60_000, 60_000))


def postscript(path: Path) -> None:
    """A program, which Pillow would hand to Ghostscript."""
    path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n{} loop\n")


def write_npz(path: Path, *without: str) -> None:
    """A small file in MedMNIST's format, less some arrays."""
    images, labels = make_images(8, 16, 0)
    arrays = {
        "train_images": images,
        "train_labels": labels,
        "val_images": 255 - images,
        "val_labels": labels,
    }
    np.savez(path, **{name: array for name, array in arrays.items() if name not in without})  # type: ignore[arg-type]


def add_array(
    path: Path, name: str, shape: tuple[int, ...], size: int, kind: int = zipfile.ZIP_DEFLATED
) -> None:
    """Adds an array of bytes that are zero: what its header says, and how many there are."""
    with warnings.catch_warnings(), zipfile.ZipFile(path, "a", kind, compresslevel=1) as archive:
        warnings.simplefilter("ignore")  # of a repeated name
        with archive.open(f"{name}.npy", "w") as file:
            file.write(array_header(shape))
            for _ in range(size // MIB):
                file.write(_ZEROS)
            file.write(bytes(size % MIB))


def array_header(shape: tuple[int, ...]) -> bytes:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return header.getvalue()


def npz_that_lies(path: Path) -> None:
    """An array whose header says eight small images, and more than half a gigabyte."""
    write_npz(path, "train_images")
    add_array(path, "train_images", (8, 16, 16), 700 * MIB)


def npz_twice(path: Path) -> None:
    write_npz(path)
    add_array(path, "val_images", (8, 16, 16), 8 * 16 * 16)


def npz_of_bzip2(path: Path) -> None:
    write_npz(path, "train_images")
    add_array(path, "train_images", (8, 16, 16), 8 * 16 * 16, zipfile.ZIP_BZIP2)


def npz_with_long_list(path: Path) -> None:
    """Its end says that the list of its arrays has 800 MB, and they are there."""
    write_npz(path)
    whole = path.read_bytes()
    end = struct.unpack("<4s4H2LH", whole[-22:])
    with path.open("wb") as file:
        file.write(whole[: end[6]])
        file.seek(800_000_000, os.SEEK_CUR)
        file.write(struct.pack("<4s4H2LH", *end[:5], 800_000_000, end[6], 0))


def npz_of_many_labels(path: Path) -> None:
    """More than half a gigabyte of labels for eight images."""
    write_npz(path, "train_labels")
    add_array(path, "train_labels", (700 * MIB,), 700 * MIB)


def npz_with_masks(path: Path) -> None:
    """As much of something that nobody needs."""
    write_npz(path)
    add_array(path, "masks", (700 * MIB,), 700 * MIB)


def one_line(path: Path) -> None:
    """A table of one line of 1.5 GB, of which none is on the disk."""
    path.write_text("path,label,modality\n")
    os.truncate(path, 1_500_000_000)


LAUGH = "a0: &a0 [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"a{level}: &a{level} [{','.join([f'*a{level - 1}'] * 10)}]\n" for level in range(1, 12)
)
MERGE = "a0: &a0 {k: 1}\n" + "".join(
    f"a{level}: &a{level} {{<<: [{','.join([f'*a{level - 1}'] * 10)}]}}\n" for level in range(1, 12)
)
YAML: dict[str, tuple[str, str]] = {
    "YAML of aliases of aliases": (LAUGH, "the limit is 10,000"),
    "YAML of merge keys of merge keys": (MERGE, "the limit is 10,000"),
    "YAML of 20,000 keys": (
        "".join(f"k{i}: 1\n" for i in range(20_000)),
        "YAML values with aliases expanded",
    ),
    "YAML of base 60": ("training: {epochs: " + ":".join(["1"] * 120_000) + "}", "one YAML number"),
    "YAML of a long number": ("training: {epochs: " + "9" * 240_000 + "}", "one YAML number"),
    "deeply nested YAML": ("training: " + "[" * 240_000, "levels of nested YAML"),
    "YAML of 600 kB": ("".join(f"k{i}: 1\n" for i in range(60_000)), "bytes of YAML"),
    "YAML that refers to itself": ("data: &a {augment: *a}", "the alias 'a' refers to itself"),
}
