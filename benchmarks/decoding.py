"""How many images a second the first build of the decode cache decodes, against what the cores can.

python -m benchmarks.decoding [--kind png|dicom] [--side 512] [--images 4000]

The limit is a process per usable core, all at once, which reads, hashes and resizes its share of the images
and writes nothing; its start is not counted. In turns. A second start is timed as well: it decodes nothing.
"""

import argparse
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.measuring import keep, python, show, spread
from src.utils.runtime import usable_cores

CHILD = """
import sys, time
from pathlib import Path
if __name__ == "__main__":
    from src.data.dataset import load_dataset
    from src.utils.config import DataConfig
    started = time.perf_counter()
    load_dataset(DataConfig(root_dir=sys.argv[1], image_size=224), Path("cache"))
    print(time.perf_counter() - started)
"""
SHARE = """
import sys, time
from pathlib import Path
from src.data.image_files import read_header, read_image
from src.data.pixels import ImageFormat, render
from src.data.listing import Sample
from src.utils.io import sha256
root, share, shares = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
samples = [Sample(file, file.name, 0, None, None) for file in sorted(Path(root).rglob("*.*"))[share::shares]]
read_image(samples[0])
started = time.perf_counter()
for sample in samples:
    read_header(sample)
    picture = read_image(sample)
    sha256(picture.content)
    render(picture, ImageFormat(224, 1, None, "pad"))
print(time.perf_counter() - started)
"""


def write_images(root: Path, kind: str, side: int, count: int) -> None:
    """Smooth noise, a file per image, in two classes."""
    random = np.random.default_rng(0)
    for number in range(count):
        folder = root / "A" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(random.integers(0, 255, (side // 8, side // 8), dtype=np.uint8))
        image = small.resize((side, side), Image.Resampling.BICUBIC)
        if kind == "png":
            image.save(folder / f"{number}.png")
        else:
            write_dicom(folder / f"{number}.dcm", np.asarray(image).astype(np.int16) * 8 - 1024, number)


def write_dicom(path: Path, values: "np.typing.NDArray[np.int16]", number: int) -> None:
    """Return a CT slice in HU, uncompressed."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = CTImageStorage, ExplicitVRLittleEndian
    meta.MediaStorageSOPInstanceUID = UID(f"1.2.{number}")
    dicom = Dataset()
    dicom.file_meta, dicom.PatientID, dicom.PhotometricInterpretation = meta, str(number), "MONOCHROME2"
    dicom.Rows, dicom.Columns = values.shape
    dicom.BitsAllocated, dicom.BitsStored, dicom.HighBit = 16, 16, 15
    dicom.PixelRepresentation, dicom.SamplesPerPixel = 1, 1
    dicom.PixelData = values.tobytes()
    dicom.save_as(path, enforce_file_format=True)


def limit(folder: Path, root: Path) -> float:
    """Seconds that all cores take when they only decode."""
    cores = usable_cores()
    with ThreadPoolExecutor(cores) as pool:
        told = pool.map(
            lambda share: python(folder, "-c", SHARE, str(root), str(share), str(cores)), range(cores)
        )
        return max(map(float, told))


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser("python -m benchmarks.decoding", description=__doc__)
    parser.add_argument("--kind", choices=("png", "dicom"), default="png")
    parser.add_argument(
        "--side", type=int, default=512, help="of the files, in pixels; they are shown at 224"
    )
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    measured: dict[str, list[float]] = {"limit": [], "first build": [], "second start": []}
    with tempfile.TemporaryDirectory(prefix="decoding-") as name:
        root = Path(name) / "images"
        write_images(root, args.kind, args.side, args.images)
        for turn in range(args.turns):
            folder = Path(name) / str(turn)
            folder.mkdir()
            (folder / "child.py").write_text(CHILD)
            measured["limit"].append(args.images / limit(folder, root))
            for what in ("first build", "second start"):
                measured[what].append(args.images / float(python(folder, "child.py", str(root))))
    show(["", "images/s"], [[what, spread(rates, 0)] for what, rates in measured.items()])
    pairs = zip(measured["first build"], measured["limit"], strict=True)
    print(f"first build, of the limit: {spread([ours / most for ours, most in pairs])}")
    keep(args.json, measured)


if __name__ == "__main__":
    main()
