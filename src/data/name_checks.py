"""Unify spellings of class, patient and split names, and refuse ambiguous ones."""

import re
import unicodedata
from collections.abc import Iterable, Mapping

from ..errors import DataError
from ..utils.io import sha256
from .listing import SPLITS

_END = "\0"
_NUMBER = re.compile(r"\d+(\.0+)?")
_ZERO_DECIMALS = re.compile(rf"(?<={_END})(\d+)\.0+(?={_END})")
_SPACES = re.compile("  +")
_ROUNDED = re.compile(r"\d(\.\d+)?E\+\d+", re.IGNORECASE)
_LEADING_ZEROS = re.compile(r"(?<![\d.])0+(?=\d)")
_SEPARATORS = re.compile(r"[\s_-]+")
_LISTED = re.compile(r"[|;,/&+]")
_MISSING = frozenset(
    {"nan", "na", "n/a", "#n/a", "<na>", "null", "nat", "#value!", "#ref!", "?", "-", "-1", "-1.0"}
)
_NOBODY = _MISSING | {"none", "unknown", "anonymous"}
_SPLITS = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validation", "validate", "dev", "development"),
    "test": ("test", "testing", "tst"),
}
_SPLIT_OF = {word: split for split, words in _SPLITS.items() for word in words}
# Names of unclear parts of the data: `train2` and `eval` as well as `fold_0`.
_UNCLEAR = re.compile(
    r"(?:(?:cv|kfold|fold|split|partition)\d+|\d+fold|(?:hold|held)out|eval|evaluation|"
    rf"(?:{'|'.join(_SPLIT_OF)})\d+)"
)
_SPLIT_ADVICE = (
    f"expected {', '.join(SPLITS)}; for a cross-validation leave the folds out and set data.folds, "
    "which deals the images by patient"
)
_NEGATIVE = re.compile(
    r"0|others?|normals?|benign|neg(ative)?|healthy|controls?|none|absent|absence|(no|non|not|without)[ _-].*"
)
_IMAGES = frozenset({"image", "images", "img", "imgs", "original", "originals"})
_MASKS = frozenset(
    {"mask", "masks", "label", "labels", "annotation", "annotations", "segmentation", "segmentations"}
    | {"groundtruth", "groundtruths", "gt", "contour", "contours"}
)
_EXTRAS = re.compile(r"(?<=.)(?:data|dataset|set|split|images?)$")


def unify(places: Mapping[str, str], what: str, where: str) -> dict[str, str]:
    """Map each spelling of a name to the one to use.

    Spellings that are certainly the same name are unified: Unicode forms, surrounding blanks, and ``7`` and
    ``7.0`` if all names are such numbers (from spreadsheets). A name with one spelling is unchanged.

    Args:
        places: Location of each spelling, such as ``line 3``.
        what: What the names are, such as ``patient``.
        where: The file or folder, for messages.

    Raises:
        DataError: Two spellings may be the same name: they differ in case, leading zeros or separators.
    """
    if not places:
        return {}
    names = list(places)
    plains = _plain(names)
    firsts: dict[str, str] = {}
    several = {
        plain for name, plain in zip(names, plains, strict=True) if firsts.setdefault(plain, name) != name
    }
    alike: dict[str, str] = {}
    for plain, look in zip(firsts, _looks(list(firsts)), strict=True):
        other = alike.setdefault(look, plain)
        # Ids of one length may differ only in zeros.
        if other != plain and (len(other) != len(plain) or _fold(other) == _fold(plain)):
            one, two = firsts[other], firsts[plain]
            problem = f"{where}: two spellings that may be the same {what}"
            remedy = "write it in one way everywhere, or give each a name of its own"
            raise DataError(
                f"{problem}: {one!r} ({places[one]}) and {two!r} ({places[two]}); {remedy}",
                public=f"{problem}; {remedy}",
            )
    return {name: plain if plain in several else name for name, plain in zip(names, plains, strict=True)}


def hash_patient(name: str) -> str:
    """Return the hash of a patient named in a file."""
    return sha256(f"patient {name}".encode())


def hash_spelling(name: str) -> str:
    """Return a hash that is equal for all spellings that may be the same name."""
    return sha256(f"alike {_looks(_plain([name]))[0]}".encode())


def normalize_patient(name: str) -> str:
    """Return the normalized patient of a file, "" for a placeholder such as ``unknown``."""
    plain = unicodedata.normalize("NFC", name).strip()
    return "" if plain.casefold() in _NOBODY else plain


def check_classes(places: Mapping[str, str], where: str) -> None:
    """Raise a `DataError` for a placeholder of a missing label, or several labels in one cell."""
    for name in places:
        parts = [part.strip() for part in _LISTED.split(name)]
        if name.strip().casefold() in _MISSING:
            problem = "means a missing label; label or remove the images, or name the class by a word"
            raise _refusal("label", name, problem, places, where)
        if "|" in name or name[:1] + name[-1:] == "[]" or (len(parts) > 1 and places.keys() >= set(parts)):
            problem = (
                "holds several labels, and a classifier takes one for each image; choose one class for each "
                "image, such as one finding against the rest"
            )
            raise _refusal("label", name, problem, places, where)


def _refusal(what: str, name: str, problem: str, places: Mapping[str, str], where: str) -> DataError:
    return DataError(
        f"{where}, {places[name]}: the {what} {name!r} {problem}", public=f"{where}: a {what} {problem}"
    )


def check_no_masks(names: Iterable[str], where: str) -> None:
    """Raise a `DataError` if the folders of two classes seem to hold images and their masks."""
    words = {_SEPARATORS.sub("", name.casefold()): name for name in names}
    images, masks = ([words[word] for word in sorted(words.keys() & of)] for of in (_IMAGES, _MASKS))
    if images and masks:
        raise DataError(
            f"{where}: the folders {images[0]} and {masks[0]} look like images and their masks, not like two "
            "classes; put the images into a folder for each class, or rename the folders"
        )


def check_patients(places: Mapping[str, str], where: str) -> None:
    """Raise a `DataError` for a placeholder of an unknown patient, or a number that is rounded."""
    for name in places:
        if name.casefold() in _NOBODY:
            problem = (
                "means an unknown patient, and all such images would count as one patient; name each patient"
            )
            raise _refusal("patient", name, problem, places, where)
        if _ROUNDED.fullmatch(name):
            problem = (
                "is a number that a spreadsheet has rounded, which makes one patient of several; export the "
                "column as text"
            )
            raise _refusal("patient", name, problem, places, where)


def is_like_split(name: str) -> bool:
    """Return whether a name is that of a split, a fold, or an unclear part of the data."""
    word = _word(name)
    return word in _SPLIT_OF or _UNCLEAR.fullmatch(word) is not None


def name_splits(places: Mapping[str, str], where: str) -> dict[str, str]:
    """Map the names of splits to ``train``, ``val`` and ``test``.

    Raises:
        DataError: A name is unknown, or two words mean the same split.
    """
    found: dict[str, str] = {}
    words: dict[str, str] = {}
    for name, place in places.items():
        split = _SPLIT_OF.get(_word(name))
        if split is None:
            raise DataError(
                f"{where}, {place}: the split {name!r} is unknown; {_SPLIT_ADVICE}",
                public=f"{where}, {place}: a split is unknown; {_SPLIT_ADVICE}",
            )
        other = words.setdefault(split, name)
        if other.casefold() != name.casefold():
            raise DataError(
                f"{where}: {other!r} ({places[other]}) and {name!r} ({place}) may both be {split}; name one "
                f"of them {split}, and the other by what it is, or take it out"
            )
        found[name] = split
    return found


def is_like_negative(name: str) -> bool:
    """Return whether the name of a class suggests the absence of a finding, such as normal or no_tumor."""
    return _NEGATIVE.fullmatch(name.strip().casefold()) is not None


def _word(name: str) -> str:
    word = _SEPARATORS.sub("", unicodedata.normalize("NFKC", name).strip().casefold())
    return _EXTRAS.sub("", word)


def _plain(names: list[str]) -> list[str]:
    """Return the normalized spelling of each name."""
    plain = [(name if name.isascii() else unicodedata.normalize("NFC", name)).strip() for name in names]
    are_numbers = all(map(_NUMBER.fullmatch, plain))
    return [name.partition(".")[0] for name in plain] if are_numbers else plain


def _looks(names: list[str]) -> list[str]:
    """Return a key for each name; similar names have the same key.

    The names are processed as one text: a million calls would take seconds.
    """
    text = _fold(_END.join(names))
    if ".0" in text:
        text = _ZERO_DECIMALS.sub(r"\1", f"{_END}{text}{_END}")[1:-1]
    return _LEADING_ZEROS.sub("", text).split(_END)


def _fold(text: str) -> str:
    folded = text if text.isascii() else unicodedata.normalize("NFKC", text)
    folded = folded.casefold().replace("_", " ").replace("-", " ")
    return _SPACES.sub(" ", folded) if "  " in folded else folded
