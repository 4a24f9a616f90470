"""The errors that the user can act on: one base, a few children.

Every message says what happened, where, and what to do next. Commands print it on one line of
stderr and end with the error's ``exit_code``; no traceback is shown.
"""


class MlprojectError(Exception):
    """Base of all errors that the project raises on purpose.

    Attributes:
        public: The message as a store may keep it: it names no image, for names of images can hold
            patients' identifiers.
    """

    exit_code = 1

    def __init__(self, message: str, *, public: str | None = None) -> None:
        super().__init__(message)
        self.public = public or message


class UserError(MlprojectError):
    """An input that the user can correct before training starts (exit status 2)."""

    exit_code = 2


class ConfigError(UserError):
    """A setting is unknown, of the wrong type, or out of range."""


class DataError(UserError):
    """The data is missing, unreadable, or not what training needs."""


class ModelError(UserError):
    """The model or its weights cannot be built as requested."""


class StoreError(UserError):
    """The tracking store or the output folder cannot be used."""


class TrackingError(MlprojectError):
    """The tracking store failed while a run was under way (exit status 1)."""


class TrainingError(MlprojectError):
    """Training started and could not continue (exit status 1)."""


class ClaimError(MlprojectError):
    """A run's model does not give what the run claims, so it is not promoted (exit status 1)."""


class MlprojectWarning(UserWarning):
    """What a command prints as a warning, if a function of the Python interface was called instead."""
