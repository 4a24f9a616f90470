"""A group: the runs of one model on one modality, which compete for one place."""

import re
from dataclasses import dataclass
from pathlib import Path

from ..errors import MlprojectError
from ..tracking.names import registered_name
from ..utils.config_fields import TAG_PATTERN

FOLDER = Path("config/best_hparams")
"""Where the records lie, below the working folder."""


@dataclass(frozen=True, order=True)
class Group:
    """One model on one modality."""

    model: str
    modality: str

    @property
    def name(self) -> str:
        """The registered model's name, and the record's without its ending."""
        return registered_name(self.model, self.modality)

    @property
    def record_path(self) -> Path:
        """The group's YAML."""
        return FOLDER / f"{self.name}.yaml"

    def check_name(self) -> None:
        """Refuses tags that cannot be a file's and a registered model's name.

        Raises:
            MlprojectError: They hold a separator, a space or ``..``.
        """
        plain = re.fullmatch(TAG_PATTERN, self.model) and all(
            re.fullmatch(TAG_PATTERN, part) for part in self.modality.split("+")
        )
        if not plain or ".." in self.name:
            raise MlprojectError(
                f"model {self.model!r} on modality {self.modality!r} would name a file and a model: "
                "letters, digits, '.', '_' and '-' only, and no '..'; runs with such tags are not promoted"
            )
