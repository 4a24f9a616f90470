"""A public chest X-ray set with 29 columns, rebuilt small: its columns, views, volumes, copies and damage."""

import csv
from pathlib import Path

import numpy as np
from PIL import Image

COLUMNS = [
    "patientid",
    "offset",
    "sex",
    "age",
    "finding",
    "RT_PCR_positive",
    "survival",
    "intubated",
    "intubation_present",
    "went_icu",
    "in_icu",
    "needed_supplemental_O2",
    "extubated",
    "temperature",
    "pO2_saturation",
    "leukocyte_count",
    "neutrophil_count",
    "lymphocyte_count",
    "view",
    "modality",
    "date",
    "location",
    "folder",
    "filename",
    "doi",
    "url",
    "license",
    "clinical_notes",
    "other_notes",
]
COVID, SARS, BACTERIAL = "Pneumonia/Viral/COVID-19", "Pneumonia/Viral/SARS", "Pneumonia/Bacterial"
VIEWS = ("PA", "AP", "AP Supine", "L")


def write_chest(root: Path, patients: int = 60) -> Path:
    """Write ``metadata.csv`` and ``images/``; return the table.

    Every patient has one or two images. COVID-19 is brighter. Some rows are of CT volumes, whose files are
    not there; one file is missing, one is damaged, one has two rows that agree, and one two that do not.
    """
    random = np.random.default_rng(0)
    (root / "images").mkdir(parents=True)
    (root / "volumes").mkdir()
    rows = []
    for number in range(patients):
        finding = (COVID, BACTERIAL, COVID, SARS if number % 20 == 3 else "No Finding")[number % 4]
        for offset in range(1 + number % 2):
            name = f"case-{number:03d}-{offset}.png"
            level = 150 if finding == COVID else 90
            pixels = random.normal(level, 30, (24, 20)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / "images" / name)
            rows.append(_row(number, offset, finding, VIEWS[number % 4 if offset else number % 2], name))
    for number in range(5):
        (root / f"volumes/ct-{number}.nii.gz").write_bytes(b"\x1f\x8b")
        volume = _row(number, 9, COVID, "Axial", f"ct-{number}.nii.gz")
        rows.append(volume | {"modality": "CT", "folder": "volumes"})
    rows.append(rows[0] | {"offset": "1"})
    rows.append(rows[1] | {"finding": COVID})
    rows.append(_row(900, 0, COVID, "PA", "missing.png"))
    (root / "images/case-004-0.png").write_bytes(b"\x89PNG\r\n\x1a\n damaged")
    rows.append(_row(901, 0, "todo", "PA", "case-901-0.png"))
    Image.fromarray(np.full((24, 20), 7, np.uint8)).save(root / "images/case-901-0.png")
    return write_rows(root / "metadata.csv", rows)


def write_rows(path: Path, rows: list[dict[str, str]]) -> Path:
    """Write a table with all columns."""
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, COLUMNS, restval="")
        table.writeheader()
        table.writerows(rows)
    return path


def _row(patient: int, offset: int, finding: str, view: str, name: str) -> dict[str, str]:
    return {
        "patientid": str(patient),
        "offset": str(offset),
        "sex": "MF"[patient % 2],
        "age": str(30 + patient % 50),
        "finding": finding,
        "RT_PCR_positive": "Y" if finding == COVID else "",
        "survival": "YN"[patient % 2],
        "view": view,
        "modality": "X-ray",
        "date": "2020",
        "location": "Hospital, City; Country",
        "folder": "images",
        "filename": name,
        "doi": f"10.1/{patient % 7}",
        "url": "https://example.org",
        "license": "CC BY",
        "clinical_notes": "cough,\nfever",
    }
