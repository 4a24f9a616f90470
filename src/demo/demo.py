"""The demo dataset: synthetic `phantoms`, written as PNG files on first use."""

import os
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import DataError
from ..utils.io import TEMP_PREFIX, file_lock
from .phantoms import PHASES, patient_images

DEMO_NAME = "demo"
DEMO_PATIENT_REGEX = r"^(p\d+)_"
"""Group 1 of a match on the file name is the patient."""

_FOLDER = "demo-v1"  # change the version with the images: folders are never rewritten
_README = "README.txt"
_README_TEXT = """\
SYNTHETIC images, not patient data.

Computer-made phantoms in the manner of liver CT, for trying the software out; of no medical use.
A = arterial phase, P = portal venous phase, with the same patients, slices and file names in both.
benign = haemangioma-like lesion, malignant = HCC-like lesion. pNNNN_K.png is slice K of patient pNNNN.
"""
_CLASSES = ("benign", "malignant")
_PATIENTS = 420
_SEED = 2018


def make_demo(cache_dir: Path) -> Path:
    """Make the demo data on first use and return its folder, ``cache_dir / "demo-v1"``.

    The folder holds ``{A,P}/{benign,malignant}/pNNNN_K.png``: 8-bit gray images of 64 x 64 pixels, the
    same file names in both phases, and the same bytes each time (for one version of NumPy and Pillow).
    Several processes may call it at the same time; a killed one leaves no incomplete data.

    Raises:
        DataError: The folder cannot be written, or a file has that name.
    """
    target = cache_dir / _FOLDER
    if (target / _README).is_file():
        return target
    try:
        with file_lock(cache_dir / f".{_FOLDER}.lock"):
            if not (target / _README).is_file():
                _build(target)
    except OSError as error:
        raise DataError(
            f"the demo data cannot be made in {target}: {error.strerror or error}; "
            "free some space, move that folder away, or choose another cache folder"
        ) from error
    return target


def _build(target: Path) -> None:
    """Write the data to a temporary folder and rename it to ``target``; the caller holds the lock."""
    prefix = f"{TEMP_PREFIX}{_FOLDER}-"
    for leftover in target.parent.glob(f"{prefix}*"):
        shutil.rmtree(leftover)
    temp = target.parent / f"{prefix}{os.getpid()}"
    try:
        _write(temp)
        temp.rename(target)
    except BaseException as error:
        shutil.rmtree(temp, ignore_errors=True)
        # On network drives without working locks another process may have been faster.
        if not (isinstance(error, OSError) and (target / _README).is_file()):
            raise


def _write(root: Path) -> None:
    for phase in PHASES:
        for name in _CLASSES:
            (root / phase / name).mkdir(parents=True)
    labels = np.random.default_rng(_SEED).permutation(np.arange(_PATIENTS) % len(_CLASSES))
    for patient, label in enumerate(labels.tolist(), start=1):
        for phase, index, pixels in patient_images(patient, label):
            Image.fromarray(pixels).save(root / phase / _CLASSES[label] / f"p{patient:04d}_{index}.png")
    (root / _README).write_text(_README_TEXT, encoding="utf-8")
