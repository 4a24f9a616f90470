"""Gray values of a DICOM image: stored bits, padding, rescaling and the window of the file."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..utils.io import sha256
from .dicom_parser import has_embedded_overlay
from .pixels import OWN_LEVELS, DecodedImage, ImageError, Levels, Range

if TYPE_CHECKING:
    from pydicom import Dataset

Mask = NDArray[np.bool_]

_RESCALE = {"RescaleSlope": 1.0, "RescaleIntercept": 0.0}
_LINEAR, _LINEAR_EXACT, _SIGMOID = "LINEAR", "LINEAR_EXACT", "SIGMOID"
_STEP = 2.0**-23


def text_of(dataset: "Dataset", keyword: str) -> str:
    """Return an element as upper-case text without spaces around it, "" if it is missing or empty."""
    return str(dataset.get(keyword) or "").strip().upper()


def check_high_bit(path: Path, dataset: "Dataset") -> None:
    """Raise an `ImageError` unless HighBit is BitsStored - 1, as the standard demands (PS3.5, 8.1.1)."""
    bits, high = int(dataset.BitsStored), dataset.get("HighBit")
    if high is not None and int(high) != bits - 1:
        raise ImageError(
            f"{path}: HighBit is {int(high)} and BitsStored is {bits}, so it is unclear which bits hold the "
            f"pixels; convert it to HighBit {bits - 1}"
        )


def decode_gray(
    path: Path, dataset: "Dataset", stored: NDArray[Any], of_frame: frozenset[str] = frozenset()
) -> DecodedImage:
    """Return the values of a gray image in its own units.

    Args:
        path: Path of the file, for messages.
        dataset: Elements of the file.
        stored: Decoded pixels, with all allocated bits.
        of_frame: Elements that come from functional groups.

    Raises:
        ImageError: The pixels exceed BitsStored, or the rescaling gives no usable values.
    """
    padding = _padding(path, dataset, stored)
    used = used_bits(path, dataset, stored, padding)
    is_completed = _complete_rescale(path, dataset)
    values, full = _rescaled(path, dataset, used)
    inverted = _is_inverted(path, dataset)
    own, levels, no_window = None, None, ""
    try:
        own = own_window(dataset)
        levels = own_levels(dataset, values)
    except ValueError as error:
        no_window = f"{path}: {error}; set data.window=[low, high]"
    is_blackened = False
    if padding is not None and padding.any():
        is_blackened = _blacken(values, padding, full, own, inverted=inverted)
        if levels is not None:
            levels.pixels[padding] = 255 if inverted else 0
    is_threshold = own is not None and own[1] - own[0] <= 2 * max(1.0, abs(own[0])) * _STEP
    corrected = {
        "DICOM with an intercept or a slope alone": is_completed,
        "DICOM with rescaling in functional groups": not of_frame.isdisjoint(_RESCALE),
        "DICOM with padding": is_blackened,
        "DICOM with PresentationLUTShape INVERSE": inverted
        and dataset.PhotometricInterpretation != "MONOCHROME1",
        OWN_LEVELS: levels is not None or is_threshold or "WindowCenter" in of_frame,
    }
    return DecodedImage(
        values,
        full=full,
        own=own,
        inverted=inverted,
        no_window=no_window,
        levels=levels,
        corrected=tuple(what for what, is_there in corrected.items() if is_there),
    )


def _padding(path: Path, dataset: "Dataset", stored: NDArray[Any]) -> Mask | None:
    """Return which pixels lie outside of the image (PS3.3, C.7.5.1.1.2), None if the file names no value."""
    first = _number(path, dataset, "PixelPaddingValue")
    if first is None:
        return None
    last = _number(path, dataset, "PixelPaddingRangeLimit")
    # May be stored as unsigned for signed pixels: 63536 for -2000.
    ends = np.array([first, first if last is None else last], dtype=np.int64).astype(stored.dtype)
    return np.asarray((stored >= ends.min()) & (stored <= ends.max()))


def used_bits(path: Path, dataset: "Dataset", stored: NDArray[Any], padding: Mask | None) -> NDArray[Any]:
    """Replace the bits above BitsStored, which may contain an overlay or a missing sign extension.

    Raises:
        ImageError: Those bits hold something else, so that BitsStored is wrong.
    """
    bits = int(dataset.BitsStored)
    shift = 8 * stored.dtype.itemsize - bits
    if shift <= 0:
        return stored
    used = (stored << shift) >> shift
    other = used != stored
    if padding is not None:
        other &= ~padding
    if other.any() and not has_embedded_overlay(dataset):
        odd = stored[other]
        lacks_sign = dataset.PixelRepresentation and odd.min() >= 0 and odd.max() < 1 << bits
        if not lacks_sign:
            raise ImageError(
                f"{path}: BitsStored is {bits}, and its pixels hold {stored.min()} to {stored.max()}; "
                "correct BitsStored and HighBit, or convert the file"
            )
    return used if padding is None else np.where(padding, stored, used)


def _complete_rescale(path: Path, dataset: "Dataset") -> bool:
    """Fill in a missing slope or intercept, since pydicom needs both; return whether values change."""
    given = {keyword: _number(path, dataset, keyword) for keyword in _RESCALE}
    has_one = any(value is not None for value in given.values())
    for keyword, default in _RESCALE.items():
        if given[keyword] is None:
            dataset.pop(keyword, None)
            if has_one:
                setattr(dataset, keyword, default)
    return None in given.values() and any(
        given[key] not in (None, default) for key, default in _RESCALE.items()
    )


def _number(path: Path, dataset: "Dataset", keyword: str) -> float | None:
    """Return an element that is one number, None if it is missing or empty; refuse anything else."""
    try:
        value = dataset.get(keyword)
        return None if value is None or value == "" else float(value)
    except (ValueError, TypeError, OverflowError):
        raise ImageError(f"{path}: its {keyword} is not a number") from None


def _rescaled(path: Path, dataset: "Dataset", used: NDArray[Any]) -> tuple[NDArray[np.float32], Range]:
    """Return the values in the units of the file, and the range that they could have."""
    from pydicom.pixels.processing import apply_modality_lut

    bits, signed = int(dataset.BitsStored), bool(dataset.PixelRepresentation)
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    # A look-up table need not be monotonic, so all its values are computed.
    possible = np.arange(low, high + 1) if dataset.get("ModalityLUTSequence") else np.array([low, high])
    full = np.asarray(apply_modality_lut(possible, dataset), dtype=np.float64)
    with np.errstate(over="ignore"):
        # int32, for pydicom subtracts the first value of a table in the type of the pixels.
        values = np.array(apply_modality_lut(used.astype(np.int32), dataset), dtype=np.float32)
    ends = float(full.min()), float(full.max())
    if not (np.isfinite(ends).all() and ends[0] < ends[1] and np.isfinite(values).all()):
        raise ImageError(f"{path}: its rescale slope, intercept or look-up table gives no usable values")
    return values, ends


def _is_inverted(path: Path, dataset: "Dataset") -> bool:
    """Return whether low values are bright.

    An X-ray in MONOCHROME1 has the shape INVERSE as well, which is the same inversion (PS3.3, C.8.11.1).
    """
    shape = text_of(dataset, "PresentationLUTShape")
    if shape not in ("", "IDENTITY", "INVERSE"):
        raise ImageError(
            f"{path}: PresentationLUTShape {shape} is not supported; convert it to IDENTITY or INVERSE"
        )
    return bool(dataset.PhotometricInterpretation == "MONOCHROME1" or shape == "INVERSE")


def _blacken(
    values: NDArray[np.float32], padding: Mask, full: Range, own: Range | None, *, inverted: bool
) -> bool:
    """Set the padding to the darkest value that is possible, unless it is dark already.

    It is dark if the file's own window shows it black or, without a window, if no pixel is darker. Such
    padding, such as -2000 in a CT, keeps its value, and the image its hash. Return whether it was changed.
    """
    sign, dark = (-1, full[1]) if inverted else (1, full[0])
    if own is not None:
        black = sign * own[1 if inverted else 0]
    else:
        black = -math.inf if padding.all() else float((sign * values[~padding]).min())
    is_bright = float((sign * values[padding]).max()) > black
    if is_bright:
        values[padding] = dark
    return is_bright


def own_window(dataset: "Dataset") -> Range | None:
    """Return the first window of a file as (low, high), None if it has no linear one or one of width 0.

    Source: DICOM PS3.3, C.11.2.1.2 (functions LINEAR and LINEAR_EXACT).

    Raises:
        ValueError: The gray levels are described in an unsupported way, which the message names.
    """
    window = _window(dataset)
    if window is None or window[0] == _SIGMOID:
        return None
    function, center, width = window
    if function == _LINEAR:
        center, width = center - 0.5, width - 1
        if width == 0:  # a threshold: everything above is white
            return center, center + max(1.0, abs(center)) * _STEP
    return center - width / 2, center + width / 2


def _window(dataset: "Dataset") -> tuple[str, float, float] | None:
    """Return function, center and width of a file's first window, None if it has none or one of width 0."""
    try:
        center, width = _first(dataset.get("WindowCenter")), _first(dataset.get("WindowWidth"))
    except (ValueError, TypeError, OverflowError):
        raise ValueError(
            "its WindowCenter and WindowWidth are not one number each; set data.window"
        ) from None
    if center is None or width is None or width == 0:
        return None
    function = text_of(dataset, "VOILUTFunction") or _LINEAR
    if function not in (_LINEAR, _LINEAR_EXACT, _SIGMOID):
        raise ValueError(f"its window has the function {function}, which is not applied")
    if not math.isfinite(center + width) or width < (1 if function == _LINEAR else 0):
        raise ValueError(f"its window has the center {center:g} and the width {width:g}")
    return function, center, width


def own_levels(dataset: "Dataset", values: NDArray[np.float32]) -> Levels | None:
    """Return the gray levels of a SIGMOID window or, in a file without a window, of a VOI look-up table.

    Source: DICOM PS3.3, C.11.2.1.1 and C.11.2.1.3.1, by pydicom.

    Raises:
        ValueError: They cannot be applied; the message states the reason.
    """
    window = _window(dataset)
    if window is None:
        return _by_table(dataset, values) if dataset.get("VOILUTSequence") else None
    function, center, width = window
    return _by_sigmoid(values, center, width) if function == _SIGMOID else None


def _by_sigmoid(values: NDArray[np.float32], center: float, width: float) -> Levels:
    from pydicom import Dataset
    from pydicom.pixels.processing import apply_windowing

    window = Dataset()
    window.WindowCenter, window.WindowWidth, window.VOILUTFunction = center, width, _SIGMOID
    window.PhotometricInterpretation, window.PixelRepresentation = "MONOCHROME2", 0
    window.BitsStored = 8  # so that it returns 0 to 255
    with np.errstate(over="ignore"):
        levels = apply_windowing(values, window)
    return Levels(np.rint(levels).astype(np.uint8), f"{_SIGMOID} {center!r} {width!r}")


def _by_table(dataset: "Dataset", values: NDArray[np.float32]) -> Levels:
    from pydicom.pixels.processing import apply_voi

    try:
        count, first, bits = map(int, dataset.VOILUTSequence[0].LUTDescriptor)
        count = count or 2**16
        if bits == 8 and count > 2**8:
            raise ValueError(f"{count} entries of 8 bits are not read")
        table = apply_voi(np.arange(first, first + count), dataset)
    except Exception as error:  # pydicom raises a dozen kinds on malformed tables
        raise ValueError(f"its VOI look-up table cannot be applied: {error}") from None
    levels = np.rint(np.minimum(table.astype(np.float64) * 255 / (2**bits - 1), 255)).astype(np.uint8)
    places = np.clip(np.floor(values), first, first + count - 1).astype(np.int64) - first
    return Levels(levels[places], f"VOI look-up table {sha256(f'{first}'.encode() + levels.tobytes())[:16]}")


def _first(value: Any) -> float | None:  # noqa: ANN401 -- pydicom: nothing, one value, or several
    if value is None or value == "":
        return None
    values = np.atleast_1d(np.asarray(value, dtype=np.float64))
    return float(values[0]) if values.size else None
