"""How long a start on a warm cache takes, and how much memory, by the number of images.

python -m benchmarks.scale [--images 10000,100000,1000000] [--folder /tmp/scale-bench]

Makes a folder ROOT/A/{neg,pos}/*.png of that many files of a few bytes, each class half of them, and has the
project cache one small image for each: the reader hands out made-up pixels, so that no file is ever opened.
Then a fresh process starts on it, without and with a pattern for the patients (four images each), and reports
the seconds of each part and its peak memory. What was made is removed at the end.
"""

import argparse
import json
import os
import shutil
from pathlib import Path

from benchmarks.measuring import keep, python, show

PATTERN = r"^(p\d+)_"
MAKE = """
import hashlib, sys, time
from dataclasses import replace
from pathlib import Path
import numpy as np
from src.data.decode_cache import decode_listings
from src.data.pixels import DecodedImage, Header
from src.data.sources import list_modalities
from src.utils.config import DataConfig

def read(sample):
    noise = hashlib.shake_128(sample.key.encode()).digest(64)
    return DecodedImage(np.frombuffer(noise, np.uint8).reshape(8, 8))

config = DataConfig(root_dir=sys.argv[1])
started = time.perf_counter()
listings = [
    replace(listing, header=lambda _: Header(8, 8, 1), read=read, in_memory=True)
    for listing in list_modalities(config, Path("cache"))
]
decode_listings(listings, config, Path("cache"))
print(time.perf_counter() - started)
"""
START = """
import json, resource, sys, time
from pathlib import Path
from src.data import dataset
from src.utils.config import DataConfig
from src.utils.runtime import gc_paused

seconds = {}

def timed(name, function):
    def call(*args, **options):
        started = time.perf_counter()
        try:
            return function(*args, **options)
        finally:
            seconds[name] = time.perf_counter() - started
    return call

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9

before, cpu = peak(), time.process_time()
dataset.list_modalities = timed("list", dataset.list_modalities)
dataset.decode_listings = timed("look up", dataset.decode_listings)
config = DataConfig(root_dir=sys.argv[1], patient_regex=sys.argv[2] or None)
with gc_paused():  # as src.train has it
    loaded = timed("total", dataset.load_dataset)(config, Path("cache"))
cpu = time.process_time() - cpu
rest = seconds["total"] - seconds["list"] - seconds["look up"]
print(json.dumps({**seconds, "rest": rest, "cpu": cpu, "imports_gb": before, "peak_gb": peak(),
                  "images": sum(map(len, loaded.splits.values())), "fingerprint": loaded.fingerprint}))
"""


def write_files(root: Path, count: int) -> None:
    """Files of a few bytes: half of them in each class, four for each patient."""
    for digit, label in enumerate(("neg", "pos")):
        folder = root / "A" / label
        folder.mkdir(parents=True)
        for number in range(count // 2):
            name = f"{folder}/p{digit}{number // 4:06d}_{number % 4}.png"
            handle = os.open(name, os.O_WRONLY | os.O_CREAT)
            os.write(handle, b"png")
            os.close(handle)


def measure(folder: Path, count: int) -> dict[str, dict[str, float]]:
    """Return what a start reports, without and with a pattern for the patients."""
    place = folder / str(count)
    write_files(place / "images", count)
    # Each in a process of its own: what one has taken must not count as another's peak.
    made = float(python(place, "-c", MAKE, "images"))
    print(f"{count} images: cached in {made:.0f} s", flush=True)
    starts = {
        name: json.loads(python(place, "-c", START, "images", pattern))
        for name, pattern in (("each image", ""), ("data.patient_regex", PATTERN))
    }
    shutil.rmtree(place)
    return starts


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser("python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--images", default="10000,100000,1000000")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/scale-bench"))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    measured = {int(count): measure(args.folder, int(count)) for count in args.images.split(",")}
    columns = ["images", "patients", "list", "stat, index", "rest", "total, s", "CPU, s"]
    columns += ["s per 100,000", "peak, GB"]
    rows = [
        [f"{count:,}", patients]
        + [f"{start[part]:.2f}" for part in ("list", "look up", "rest", "total", "cpu")]
        + [f"{start['total'] / count * 100_000:.2f}", f"{start['peak_gb']:.2f}"]
        for count, starts in measured.items()
        for patients, start in starts.items()
    ]
    show(columns, rows)
    keep(args.json, {str(count): starts for count, starts in measured.items()})


if __name__ == "__main__":
    main()
