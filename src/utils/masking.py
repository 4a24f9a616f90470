"""Mask passwords and other secrets in URIs and messages; if unclear, mask too much."""

import re
from urllib.parse import unquote_plus

_MASK = "***"
_SECRET_KEY = re.compile(r"pass|pwd|secret|token|key|credential|auth|^sig", re.IGNORECASE)
_URI = re.compile(r"(?:[a-z][a-z0-9+.-]*:)?//[^\s'\"]+", re.IGNORECASE)
_ASSIGNMENT = re.compile(
    r"\b((?:\w*(?:password|passwd|secret|token)|pwd)\s*=\s*)('[^']*'|\S+)", re.IGNORECASE
)


def masked_uri(uri: str) -> str:
    """Return a URI without passwords.

    A password that is not percent-encoded may contain ``/``, ``@``, ``?``, ``&`` and spaces, so that its end
    is ambiguous. Everything up to the last ``@``, and everything after the first query key that names a
    secret, is masked.

    Args:
        uri: The URI, or a plain path, which is returned as it is.
    """
    scheme, separator, rest = uri.partition("//")
    if not separator or not (scheme == "" or scheme.endswith(":")):
        return uri
    if not rest.startswith("/") and "@" in rest:  # a path, as in sqlite:///, has no user
        rest = f"{_MASK}@{rest.rpartition('@')[2]}"
    return f"{scheme}//{_masked_query(rest)}"


def masked_text(text: str, *uris: str) -> str:
    """Return a message, such as an error's, without the passwords of the URIs that it names.

    Args:
        text: The message.
        uris: URIs that may be part of it, and may contain spaces.
    """
    for uri in filter(None, uris):
        text = text.replace(uri, masked_uri(uri))
    text = _URI.sub(lambda found: masked_uri(found[0]), text)
    return _ASSIGNMENT.sub(rf"\1{_MASK}", text)


def _masked_query(rest: str) -> str:
    path, question, query = rest.partition("?")
    parts = re.split(r"([&;])", query)
    for place, part in enumerate(parts):
        key, equals, _ = part.partition("=")
        if equals and _SECRET_KEY.search(unquote_plus(key)):
            return f"{path}?{''.join(parts[:place])}{key}={_MASK}"
    return f"{path}{question}{query}"
