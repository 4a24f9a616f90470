"""From files to splits: fingerprints, cache, leaks."""

import json
import multiprocessing
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src.data.dataset import Dataset, load_dataset
from src.errors import DataError
from src.utils.config import DataConfig
from tests.images import make_images, pixels_of, write_folder, write_npz


def load(root: Path, cache: Path, **settings: object) -> Dataset:
    config = DataConfig.model_validate({"root_dir": str(root), **settings})
    return load_dataset(config, cache)


def test_npz_pixels_and_labels_arrive_where_they_belong(folder: Path) -> None:
    dataset = load(write_npz(folder / "d.npz"), folder / "cache")
    original = np.load(folder / "d.npz")
    for split in ("train", "val", "test"):
        images, labels = original[f"{split}_images"], original[f"{split}_labels"].ravel()
        pairs = {(image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True)}
        got = dataset.batch(split, np.arange(len(dataset.splits[split]))).numpy()
        assert got.shape == (len(images), 1, 16, 16)
        assert {
            (image.tobytes(), int(label))
            for image, label in zip(got, dataset.splits[split].labels, strict=True)
        } == pairs
    assert dataset.classes == ("0", "1")


def test_positive_class_goes_last(folder: Path) -> None:
    dataset = load(
        write_folder(folder / "d", counts={"train": 8, "val": 8}), folder / "c", positive_class="neg"
    )
    assert dataset.classes == ("pos", "neg")


def test_fingerprint_sees_one_pixel_a_label_a_patient_and_the_split(folder: Path) -> None:
    root = write_folder(folder / "d", counts={"train": 8, "val": 8})
    before = load(root, folder / "c")
    assert load(root, folder / "other").fingerprint == before.fingerprint
    by_patient = load(root, folder / "c", patient_regex=r"_(\d+)", on_leak="allow")
    assert by_patient.fingerprint != before.fingerprint
    assert by_patient.split_fingerprint == before.split_fingerprint

    file = root / "A/train/neg/p000_0.png"
    pixels = np.array(Image.open(file))
    pixels[3, 4] ^= 1
    Image.fromarray(pixels).save(file)
    flipped = load(root, folder / "c")
    assert flipped.fingerprint != before.fingerprint

    file.rename(root / "A/train/pos/p000_0.png")
    relabelled = load(root, folder / "c")
    assert relabelled.fingerprint != flipped.fingerprint
    assert relabelled.split_fingerprint == flipped.split_fingerprint

    (root / "A/train/pos/p000_0.png").rename(root / "A/val/pos/p000_0.png")
    assert load(root, folder / "c").split_fingerprint != relabelled.split_fingerprint


def test_names_and_format_of_files_do_not_matter(folder: Path) -> None:
    first = load(write_folder(folder / "d", counts={"train": 8, "val": 8}), folder / "c")
    for number, file in enumerate(sorted((folder / "d").rglob("*.png"), reverse=True)):
        Image.open(file).save(file.with_name(f"z{number}.bmp"))
        file.unlink()
    second = load(folder / "d", folder / "c")
    assert second.fingerprint == first.fingerprint
    order = np.arange(8)
    assert (second.batch("train", order) == first.batch("train", order)).all()


def test_a_second_start_opens_no_image(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_folder(folder / "d", counts={"train": 8, "val": 8})
    first = load(root, folder / "c")
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("an image was opened"))
    assert load(root, folder / "c").fingerprint == first.fingerprint


OPENED: list[str] = []
sys.addaudithook(lambda event, args: OPENED.append(str(args[0])) if event == "open" else None)


def test_a_second_start_opens_no_file_of_the_data(folder: Path) -> None:
    root = write_folder(folder / "d", counts={"": 40})
    load(root, folder / "c", patient_regex=r"^(p\d+)_")
    assert sum(path.startswith(str(root)) for path in OPENED) >= 40
    OPENED.clear()
    load(root, folder / "c", patient_regex=r"^(p\d+)_")
    assert [path for path in OPENED if path.startswith(str(root))] == []
    assert any(path.endswith(".npz") for path in OPENED)


def test_rehash_does_not_trust_the_index(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_folder(folder / "d", counts={"train": 8, "val": 8})
    config = DataConfig(root_dir=str(root))
    first = load_dataset(config, folder / "c")
    assert load_dataset(config, folder / "c", rehash=True).fingerprint == first.fingerprint
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("an image was opened"))
    load_dataset(config, folder / "c")
    with pytest.raises(pytest.fail.Exception):
        load_dataset(config, folder / "c", rehash=True)


def test_files_that_change_places_are_seen(folder: Path) -> None:
    root = write_folder(folder / "d", counts={"train": 8, "val": 8})
    files = [root / "A/train/neg/p000_0.bmp", root / "A/train/pos/p000_1.bmp"]
    for file in files:  # uncompressed, so of one size, and with one time
        Image.open(file.with_suffix(".png")).save(file)
        file.with_suffix(".png").unlink()
        os.utime(file, ns=(10**18, 10**18))
    first = load(root, folder / "c")
    files[0].rename(root / "x")
    files[1].rename(files[0])
    (root / "x").rename(files[1])
    assert load(root, folder / "c").fingerprint != first.fingerprint


def test_a_damaged_pack_is_made_again(folder: Path) -> None:
    root = write_folder(folder / "d", counts={"train": 8, "val": 8})
    expected = load(root, folder / "c").batch("train", np.arange(8)).clone()
    (pack,) = (folder / "c/packs").glob("*.npy")
    for damage in (b"", b"nonsense" * 100, pack.read_bytes()[:500]):
        pack.write_bytes(damage)
        assert (load(root, folder / "c").batch("train", np.arange(8)) == expected).all()


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"PK\3\4", json.dumps({"x": [1]}).encode()])
def test_a_damaged_index_is_computed_again(folder: Path, damage: bytes) -> None:
    root = write_folder(folder / "d", counts={"train": 8, "val": 8})
    first = load(root, folder / "c")
    (index,) = (folder / "c/index").glob("*.npz")
    for content in (damage, index.read_bytes()[:-100]):
        index.write_bytes(content)
        assert load(root, folder / "c").fingerprint == first.fingerprint
    index.unlink()
    index.with_suffix(".json").write_bytes(damage)
    assert load(root, folder / "c").fingerprint == first.fingerprint


def _load_fingerprint(root: str) -> str:
    return load(Path(root) / "d", Path(root) / "c").fingerprint


def test_several_processes_build_the_cache_at_once(folder: Path) -> None:
    write_folder(folder / "d", counts={"train": 64, "val": 16})
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        found = pool.map(_load_fingerprint, [str(folder)] * 3)
    assert len(set(found)) == 1
    assert len(list((folder / "c/packs").glob("*.npy"))) == 1


def test_resizing_and_channels(folder: Path) -> None:
    root = write_folder(folder / "d", counts={"train": 8, "val": 8}, size=20)
    assert load(root, folder / "c").size == 20
    dataset = load(root, folder / "c", image_size=10, channels=3)
    assert dataset.arrays[0].shape[1:] == (3, 10, 10)
    shown = pixels_of(dataset.arrays[0])
    assert (shown[:, 0] == shown[:, 2]).all()
    means, spreads = dataset.channel_statistics
    pixels = dataset.batch("train", np.arange(len(dataset.splits["train"]))).numpy() / 255
    assert means == pytest.approx(pixels.mean((0, 2, 3)))
    assert spreads == pytest.approx(pixels.std((0, 2, 3)))


def test_sixteen_bits_and_colour(folder: Path) -> None:
    root = write_folder(folder / "d", counts={"train": 8, "val": 8})
    Image.fromarray(np.full((16, 16), 65535, np.uint16)).save(root / "A/train/neg/deep.png")
    Image.fromarray(np.full((16, 16, 3), 9, np.uint8)).save(root / "A/train/neg/colour.jpg")
    dataset = load(root, folder / "c")
    assert dataset.channels == 3
    assert any((image == 255).all() for image in pixels_of(dataset.arrays[0]))


def leaky(folder: Path) -> Path:
    """One training image is also in val, under another name."""
    root = write_folder(folder / "d", counts={"train": 12, "val": 8})
    image = next((root / "A/val/neg").iterdir())
    (root / "A/train/pos/copy.png").write_bytes(image.read_bytes())
    return root


def test_a_leaked_image_is_dropped_from_train(folder: Path) -> None:
    dataset = load(leaky(folder), folder / "c")
    assert dataset.counts["leaked_images"] == 1
    assert len(dataset.splits["train"]) == 12
    assert len(dataset.splits["val"]) == 8
    assert not set(dataset.splits["train"].hashes) & set(dataset.splits["val"].hashes)
    assert "1 image in train and val" in dataset.warnings[0]


def test_a_leak_may_be_an_error_or_allowed(folder: Path) -> None:
    with pytest.raises(DataError, match="1 image in train and val"):
        load(leaky(folder), folder / "c", on_leak="error")
    dataset = load(leaky(folder), folder / "c", on_leak="allow")
    assert len(dataset.splits["train"]) == 13
    assert "allowed" in dataset.warnings[0]


def test_a_patient_in_two_splits_is_dropped_from_train(folder: Path) -> None:
    # Patients are numbered from p000 in each split, so val's are all in train as well.
    root = write_folder(folder / "d", counts={"train": 16, "val": 8})
    dataset = load(root, folder / "c", patient_regex=r"^(p\d+)_")
    assert dataset.counts["leaked_images"] == 8
    assert not set(dataset.splits["train"].patients) & set(dataset.splits["val"].patients)
    assert dataset.table() == [
        ("train", "neg", 4, 4),
        ("train", "pos", 4, 4),
        ("val", "neg", 4, 4),
        ("val", "pos", 4, 4),
    ]
    assert "p000" not in " ".join(dataset.warnings)


def test_our_split_keeps_patients_and_copies_together(folder: Path) -> None:
    root = write_folder(folder / "d", counts={"": 60})
    for number, file in enumerate(sorted((root / "A/neg").iterdir())[:10]):
        (root / f"A/neg/copy{number}.png").write_bytes(file.read_bytes())
    dataset = load(root, folder / "c")
    assert dataset.counts["leaked_images"] == 0
    places = [
        {split for split, s in dataset.splits.items() if sha in s.hashes}
        for sha in dataset.splits["val"].hashes
    ]
    assert places == [{"val"}] * len(places)
    assert {len(dataset.splits["val"]), len(dataset.splits["test"])} <= {8, 9, 10, 11, 12}


@pytest.mark.parametrize("folds", [None, 3])
def test_patients_with_an_image_in_common_stay_together(folder: Path, folds: int | None) -> None:
    root = write_folder(folder / "d", counts={"": 60})
    files = sorted((root / "A/neg").iterdir())
    for number, file in enumerate(files[:20]):  # a chain of patients
        (root / f"A/neg/{files[number + 1].name.partition('_')[0]}_copy{number}.png").write_bytes(
            file.read_bytes()
        )
    for fold in range(folds or 1):
        dataset = load(root, folder / "c", patient_regex=r"^(p\d+)_", folds=folds, fold=fold)
        assert dataset.counts["leaked_images"] == 0
        assert dataset.warnings == ()
    old = load(root, folder / "c", patient_regex=r"^(p\d+)_", folds=folds, stratify="patients")
    assert old.counts["leaked_images"] > 0


def test_a_file_without_patient_is_named(folder: Path) -> None:
    root = write_folder(folder / "d", counts={"": 20})
    with pytest.raises(DataError, match=r"does not match data\.patient_regex"):
        load(root, folder / "c", patient_regex=r"^case(\d+)")


def test_hidden_folders_are_left_alone(folder: Path) -> None:
    root = write_folder(folder / "d", counts={"train": 8, "val": 8})
    copy = root / "A/train/neg/.ipynb_checkpoints/x-checkpoint.png"
    copy.parent.mkdir()
    copy.write_bytes((root / "A/train/neg/p000_0.png").read_bytes())
    assert len(load(root, folder / "c").splits["train"]) == 8


def test_what_could_not_be_opened_is_tried_again(folder: Path) -> None:
    root = write_folder(folder / "d", counts={"train": 8, "val": 8})
    link = root / "A/train/neg/elsewhere.png"
    link.symlink_to(folder / "later.png")
    assert load(root, folder / "c", on_bad_image="skip").counts["bad_images"] == 1
    Image.fromarray(np.full((16, 16), 7, np.uint8)).save(folder / "later.png")
    assert load(root, folder / "c").counts["bad_images"] == 0


def test_rehash_keeps_what_is_known_of_other_modalities(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_folder(folder / "d", counts={"train": 8, "val": 8})
    write_folder(root, counts={"train": 6, "val": 6}, modality="P")
    load(root, folder / "c", modalities=("P",))
    load_dataset(DataConfig(root_dir=str(root)), folder / "c", rehash=True)
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("an image was opened"))
    assert len(load(root, folder / "c", modalities=("P",)).splits["train"]) == 6


def test_an_image_bomb_is_refused(folder: Path) -> None:
    root = write_folder(folder / "d", counts={"train": 8, "val": 8})
    Image.new("1", (20_000, 20_000)).save(root / "A/train/neg/bomb.png")
    with pytest.raises(DataError, match=r"bomb\.png: refused as too large"):
        load(root, folder / "c")


def test_demo_reaches_the_loader(folder: Path) -> None:
    dataset = load_dataset(DataConfig(), folder / "c")
    assert dataset.classes == ("benign", "malignant")
    assert dataset.size == 64
    patients = [set(split.patients) for split in dataset.splits.values()]
    assert None not in patients[0]
    assert not patients[0] & patients[1]
    assert not patients[0] & patients[2]


@pytest.mark.parametrize("pattern", [None, r"^(p\d+)_"])
def test_modalities_of_a_folder_are_joined_by_name(folder: Path, pattern: str | None) -> None:
    """Names repeat in train and val, so that only paths are distinct; each patient has two images."""
    root = write_folder(folder / "d", counts={"train": 8, "val": 8})
    write_folder(root, counts={"train": 8, "val": 8}, modality="P")
    for file in (root / "P").rglob("*.png"):
        Image.fromarray(255 - np.array(Image.open(file))).save(file.with_suffix(".bmp"))
        file.unlink()
    both = load(root, folder / "c", modalities=("A", "P"), patient_regex=pattern, on_leak="allow")
    for name in ("train", "val"):
        images = both.batch(name, np.arange(8)).numpy()
        assert (images[:, 0] == 255 - images[:, 1]).all()


def test_one_image_of_each_patient_is_joined_whatever_its_name(folder: Path) -> None:
    root = write_folder(folder / "d", counts={"": 40})
    for file in (root / "A").rglob("*.png"):
        number = file.stem.rpartition("_")[2]
        other = root / "P" / file.parent.name / f"n{number}_venous.png"
        other.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(255 - np.array(Image.open(file))).save(other)
        file.rename(file.with_name(f"n{number}_arterial.png"))
    both = load(root, folder / "c", modalities=("A", "P"), patient_regex=r"^(n\d+)_")
    images = both.batch("train", np.arange(len(both.splits["train"]))).numpy()
    assert (images[:, 0] == 255 - images[:, 1]).all()
    assert both.counts["unpaired_images"] == 0
    # Several images each, and names that differ: the part that is the same may be told.
    with pytest.raises(DataError, match="no image of A has a counterpart in P"):
        load(root, folder / "c", modalities=("A", "P"))
    told = load(root, folder / "c", modalities=("A", "P"), image_id_regex=r"^n(\d+)_")
    assert sum(len(split) for split in told.splits.values()) == 40


def test_labels_of_any_integers(folder: Path) -> None:
    images, _ = make_images(9, 8, 0)
    labels = np.array([5, 0, 7] * 3)
    np.savez(
        folder / "d.npz",
        train_images=images,
        train_labels=labels,
        val_images=images[::-1],
        val_labels=labels[::-1],
    )
    dataset = load(folder / "d.npz", folder / "c", on_leak="allow")
    assert dataset.classes == ("0", "5", "7")


def test_an_image_under_two_labels_is_told(folder: Path) -> None:
    root = write_folder(folder / "d", counts={"train": 8, "val": 8})
    assert load(root, folder / "c").warnings == ()
    shutil.copy(root / "A/train/neg/p000_0.png", root / "A/train/pos/copy.png")
    (note,) = load(root, folder / "c").warnings
    assert note.startswith("the same pixels under several labels: 1 image; a network cannot learn both")
