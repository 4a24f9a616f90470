"""Problems of a table, collected and reported at once, and advice on misspelled names."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches

from ..errors import DataError

SHOWN = 5


def listed(items: Sequence[object], most: int = SHOWN) -> str:
    """Return the first items, and how many more there are."""
    return ", ".join(map(str, items[:most])) + f" and {len(items) - most} more" * (len(items) > most)


def nearest(name: str, names: Iterable[str]) -> str:
    """Return advice: the most similar names, or all of them."""
    folded: dict[str, str] = {}
    for other in names:
        folded.setdefault(other.casefold(), other)
    found = [folded[name] for name in get_close_matches(name.casefold(), folded, n=3, cutoff=0.5)]
    return f"did you mean {' or '.join(found)}?" if found else f"found {listed(list(folded.values()), 30)}"


@dataclass
class Problems:
    """All problems of a table, so that they are reported at once.

    Attributes:
        where: The table, for messages.
        found: One error per problem.
    """

    where: str
    found: list[DataError] = field(default_factory=list)

    def add(self, message: str, *, public: str | None = None) -> None:
        """Add a problem; ``public`` is the message without cells of the table."""
        self.found.append(DataError(message, public=public))

    @contextmanager
    def collected(self) -> Iterator[None]:
        """Add the error that the block raises, if any."""
        try:
            yield
        except DataError as error:
            self.found.append(error)

    def check(self) -> None:
        """Raise one error for all problems.

        Raises:
            DataError: There are problems.
        """
        if len(self.found) == 1:
            raise self.found[0]
        if self.found:
            title = f"{self.where}: {len(self.found)} problems:"
            texts = [title, *map(str, self.found)], [title, *(problem.public for problem in self.found)]
            message, public = ("\n  - ".join(parts) for parts in texts)
            raise DataError(message, public=public)
