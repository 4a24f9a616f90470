"""Limits on the size of input files, checked before memory is allocated.

One environment variable raises all of them. They are not settings, because they change no result, and
because they also apply to the config file.
"""

import math
import os
from dataclasses import dataclass

from ..errors import ConfigError

FACTOR = "MLPROJECT_LIMIT_FACTOR"
"""Environment variable that multiplies every limit; 1 if unset."""

HINT = f"For a file that you trust, raise all limits with {FACTOR} in the environment"


@dataclass(frozen=True)
class Limit:
    """The maximum of one quantity.

    Attributes:
        base: The maximum if `FACTOR` is not set.
        unit: The quantity, such as "bytes of one image file".
    """

    base: int
    unit: str

    @property
    def value(self) -> int:
        """Return the maximum under the current `FACTOR`.

        Raises:
            ConfigError: `FACTOR` is not a positive number.
        """
        return int(self.base * _factor())

    def excess(self, amount: int) -> str:
        """Return why an amount is refused, and how to raise the limit; "" within the limit."""
        limit = self.value
        if amount <= limit:
            return ""
        factor = -(-amount // self.base)
        return f"{amount:,} {self.unit}, and the limit is {limit:,}. {HINT}, here to at least {factor}"


def _factor() -> float:
    text = os.environ.get(FACTOR, "")
    try:
        factor = float(text or 1)
    except ValueError:
        factor = math.nan
    if not 0 < factor < math.inf:
        raise ConfigError(f"{FACTOR}={text}: expected a positive number, such as 10")
    return factor


CONFIG_BYTES = Limit(250_000, "bytes of YAML")
CONFIG_VALUES = Limit(10_000, "YAML values with aliases expanded")
CONFIG_DEPTH = Limit(50, "levels of nested YAML")
CONFIG_NUMBER = Limit(100, "characters of one YAML number")

TABLE_BYTES = Limit(2_000_000_000, "bytes of one CSV file")
TABLE_ROWS = Limit(10_000_000, "rows of one CSV file")
TABLE_COLUMNS = Limit(2_000, "columns of one CSV file")
TABLE_LINE = Limit(1_000_000, "characters of one line of a CSV file")

IMAGE_BYTES = Limit(4_000_000_000, "bytes of one image file")
IMAGE_PIXELS = Limit(100_000_000, "pixels of one image")
IMAGE_VALUES = Limit(1_000_000_000, "values of one image file (rows x columns x frames x samples)")
DICOM_HEADER = Limit(64_000_000, "bytes of a DICOM file besides its pixels")
DICOM_PARTS = Limit(50_000, "elements and sequence items of a DICOM file")

ARRAY_BYTES = Limit(64_000_000_000, "bytes of one array of an .npz")
SAFETENSORS_HEADER = Limit(10_000_000, "bytes of the header of a .safetensors file")
NPZ_IMAGES = Limit(10_000_000, "images of one array of an .npz")
NPZ_DIRECTORY = Limit(1_000_000, "bytes of the list of an .npz's arrays")
