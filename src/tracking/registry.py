"""The model registry: versions of one registered model, their tags, and the two aliases."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from .names import CHAMPION, PREVIOUS
from .store import pages, store_errors

_ATTEMPTS = 5
_ALIASES = (CHAMPION, PREVIOUS)
Result = TypeVar("Result")


@dataclass(frozen=True)
class Version:
    """One registered model version.

    Attributes:
        number: Counts from 1.
        run_id: The run that it came from, None where a person registered something else.
        source: Where the model is, such as ``models:/m-...``.
        tags: Its tags.
    """

    number: int
    run_id: str | None
    source: str
    tags: Mapping[str, str]


@dataclass(frozen=True)
class Registered:
    """What the registry holds under one name.

    Attributes:
        name: The registered model.
        exists: Whether there is such a registered model.
        versions: Its versions by number.
        aliases: Version numbers by alias, ``champion`` and ``previous``, where the version exists.
    """

    name: str
    exists: bool = False
    versions: Mapping[int, Version] = field(default_factory=dict)
    aliases: Mapping[str, int] = field(default_factory=dict)

    @property
    def champion(self) -> Version | None:
        """The version with the alias ``champion``."""
        number = self.aliases.get(CHAMPION)
        return None if number is None else self.versions[number]

    @property
    def previous(self) -> Version | None:
        """The version with the alias ``previous``."""
        number = self.aliases.get(PREVIOUS)
        return None if number is None else self.versions[number]

    def version_of(self, run_id: str, source: str) -> Version | None:
        """The version that is this very model of this run."""
        found = [v for v in self.versions.values() if (v.run_id, v.source) == (run_id, source)]
        return min(found, key=lambda version: version.number) if found else None


def read_registered(name: str) -> Registered:
    """Reads everything about one registered model; an empty answer where there is none.

    Raises:
        TrackingError: The registry cannot be read.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    client = mlflow.MlflowClient()
    versions: dict[int, Version] = {}
    with store_errors(f"{name} cannot be read"):
        try:
            model = client.get_registered_model(name)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return Registered(name)
            raise
        for entry in pages(lambda token: client.search_model_versions(f"name='{name}'", page_token=token)):
            number = int(entry.version)
            versions[number] = Version(number, entry.run_id or None, entry.source, dict(entry.tags))
    # An alias whose file was cut off, or whose version was deleted, points nowhere.
    aliases = {alias: str(model.aliases[alias]) for alias in _ALIASES if alias in model.aliases}
    pointing = {a: int(v) for a, v in aliases.items() if v.isdigit() and int(v) in versions}
    return Registered(name, True, versions, pointing)


def registered_names() -> list[str]:
    """The names of all registered models.

    Raises:
        TrackingError: The registry cannot be read.
    """
    import mlflow

    client = mlflow.MlflowClient()
    with store_errors("the registry cannot be read"):
        found = pages(lambda token: client.search_registered_models(page_token=token))
        return [model.name for model in found]


def champions() -> list[tuple[str, Mapping[str, str]]]:
    """Name and the champion's tags of every registered model that has a champion."""
    versions = [(name, read_registered(name).champion) for name in registered_names()]
    return [(name, version.tags) for name, version in versions if version is not None]


def register(name: str, run_id: str, source: str, description: str, tags: Mapping[str, str]) -> Version:
    """Makes a version of a run's logged model, or finds the one that there is, as it is.

    Args:
        name: The registered model, made where it is missing.
        run_id: The run.
        source: Its logged model, ``models:/m-...``.
        description: Of a new version.
        tags: Of a new version.

    Raises:
        TrackingError: The registry refuses.
    """
    # Looked up anew at each attempt: one that seemed to fail may have made the version.
    return _persistently(lambda: _find_or_create(name, run_id, source, description, tags))


def _find_or_create(
    name: str, run_id: str, source: str, description: str, tags: Mapping[str, str]
) -> Version:
    import mlflow
    from mlflow.exceptions import MlflowException

    client = mlflow.MlflowClient()
    registered = read_registered(name)
    if not registered.exists:
        try:
            client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # somebody else was quicker
                raise
    found = registered.version_of(run_id, source)
    if found is None:
        # A server refuses models:/m-... without the id that it names.
        model_id = source.removeprefix("models:/") if source.startswith("models:/") else None
        made = client.create_model_version(
            name, source, run_id, dict(tags), description=description, model_id=model_id
        )
        found = Version(int(made.version), run_id, source, dict(tags))
    return found


def describe(name: str, version: int, text: str) -> None:
    """Sets the description of a version."""
    import mlflow

    client = mlflow.MlflowClient()
    _persistently(lambda: client.update_model_version(name, str(version), text))


def set_tags(name: str, version: int, tags: Mapping[str, str | None]) -> None:
    """Sets the tags of a version in order, and deletes those that are None."""
    import mlflow

    client = mlflow.MlflowClient()
    for key, value in tags.items():
        if value is None:
            _persistently(partial(client.delete_model_version_tag, name, str(version), key))
        else:
            _persistently(partial(client.set_model_version_tag, name, str(version), key, value))


def set_alias(name: str, alias: str, version: int | None) -> None:
    """Points an alias to a version, or takes it away."""
    import mlflow

    client = mlflow.MlflowClient()
    if version is None:
        _persistently(lambda: client.delete_registered_model_alias(name, alias))
    else:
        _persistently(lambda: client.set_registered_model_alias(name, alias, str(version)))


def _persistently(write: Callable[[], Result]) -> Result:
    """Tries again: under load a write can meet another one and fail once."""
    from mlflow.exceptions import MlflowException

    for attempt in range(1, _ATTEMPTS):
        try:
            return write()
        except MlflowException:
            time.sleep(0.1 * 2**attempt)
    with store_errors("the registry refuses"):
        return write()
