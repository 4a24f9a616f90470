"""The model registry: versions of one registered model, their tags, and the two aliases."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import mlflow
from mlflow import MlflowException

from .names import CHAMPION, PREVIOUS
from .store import mlflow_client, store_errors

_ATTEMPTS = 5
_ALIASES = (CHAMPION, PREVIOUS)
Result = TypeVar("Result")


@dataclass(frozen=True)
class Version:
    """One registered model version.

    Attributes:
        number: The version number, from 1.
        run_id: The run that it came from, None if it was registered by hand.
        source: The URI of the model, such as ``models:/m-...``.
        tags: The version's tags.
    """

    number: int
    run_id: str | None
    source: str
    tags: Mapping[str, str]


@dataclass(frozen=True)
class Registered:
    """A registered model.

    Attributes:
        name: The name of the registered model.
        exists: Whether the registry has it.
        versions: Its versions by number.
        aliases: Version numbers by alias, ``champion`` and ``previous``, if the version exists.
    """

    name: str
    exists: bool = False
    versions: Mapping[int, Version] = field(default_factory=dict)
    aliases: Mapping[str, int] = field(default_factory=dict)

    @property
    def champion(self) -> Version | None:
        """Return the version with the alias ``champion``."""
        number = self.aliases.get(CHAMPION)
        return None if number is None else self.versions[number]

    @property
    def previous(self) -> Version | None:
        """Return the version with the alias ``previous``."""
        number = self.aliases.get(PREVIOUS)
        return None if number is None else self.versions[number]

    def version_of(self, run_id: str, source: str) -> Version | None:
        """Return the version of this model of this run, the oldest if there are several."""
        found = [v for v in self.versions.values() if (v.run_id, v.source) == (run_id, source)]
        return min(found, key=lambda version: version.number, default=None)


def read_registered(name: str) -> Registered:
    """Read a registered model with all versions and aliases; empty if it does not exist.

    Raises:
        TrackingError: The registry cannot be read.
    """
    versions: dict[int, Version] = {}
    with store_errors(f"{name} cannot be read"):
        try:
            model = mlflow_client().get_registered_model(name)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return Registered(name)
            raise
        for entry in mlflow.search_model_versions(filter_string=f"name='{name}'"):
            number = int(entry.version)
            versions[number] = Version(number, entry.run_id or None, entry.source or "", dict(entry.tags))
    # Ignore an alias whose file is truncated or whose version was deleted.
    aliases = {alias: str(model.aliases[alias]) for alias in _ALIASES if alias in model.aliases}
    pointing = {a: int(v) for a, v in aliases.items() if v.isdigit() and int(v) in versions}
    return Registered(name, True, versions, pointing)


def registered_names() -> list[str]:
    """Return the names of all registered models.

    Raises:
        TrackingError: The registry cannot be read.
    """
    with store_errors("the registry cannot be read"):
        return [model.name for model in mlflow.search_registered_models()]


def champions() -> list[tuple[str, Mapping[str, str]]]:
    """Return name and champion's tags of every registered model that has a champion."""
    versions = [(name, read_registered(name).champion) for name in registered_names()]
    return [(name, version.tags) for name, version in versions if version is not None]


def register(name: str, run_id: str, source: str, description: str, tags: Mapping[str, str]) -> Version:
    """Register a run's logged model, or return its existing version unchanged.

    Args:
        name: The registered model, which is created if it is missing.
        run_id: The run.
        source: The run's logged model, ``models:/m-...``.
        description: The description of a new version.
        tags: The tags of a new version.

    Raises:
        TrackingError: The registry refuses.
    """
    # Look it up in each attempt: one that seemed to fail may have created the version.
    return _with_retries(lambda: _find_or_create(name, run_id, source, description, tags))


def _find_or_create(
    name: str, run_id: str, source: str, description: str, tags: Mapping[str, str]
) -> Version:
    client = mlflow_client()
    registered = read_registered(name)
    if not registered.exists:
        try:
            client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another process was faster
                raise
    found = registered.version_of(run_id, source)
    if found is None:
        # A server refuses models:/m-... without the model id.
        model_id = source.removeprefix("models:/") if source.startswith("models:/") else None
        made = client.create_model_version(
            name, source, run_id, dict(tags), description=description, model_id=model_id
        )
        found = Version(int(made.version), run_id, source, dict(tags))
    return found


def describe(name: str, version: int, text: str) -> None:
    """Set the description of a version."""
    client = mlflow_client()
    _with_retries(lambda: client.update_model_version(name, str(version), text))


def set_tags(name: str, version: int, tags: Mapping[str, str | None]) -> None:
    """Set the tags of a version in order, and delete those that are None."""
    client = mlflow_client()
    for key, value in tags.items():
        if value is None:
            _with_retries(partial(client.delete_model_version_tag, name, str(version), key))
        else:
            _with_retries(partial(client.set_model_version_tag, name, str(version), key, value))


def set_alias(name: str, alias: str, version: int | None) -> None:
    """Point an alias to a version, or delete it."""
    client = mlflow_client()
    if version is None:
        _with_retries(lambda: client.delete_registered_model_alias(name, alias))
    else:
        _with_retries(lambda: client.set_registered_model_alias(name, alias, str(version)))


def _with_retries(write: Callable[[], Result]) -> Result:
    """Retry a write, which can fail once under load when it meets another one."""
    for attempt in range(1, _ATTEMPTS):
        try:
            return write()
        except MlflowException:
            time.sleep(0.1 * 2**attempt)
    with store_errors("the registry refuses"):
        return write()
