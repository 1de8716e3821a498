"""Who may ask: API keys, compared in constant time."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Iterable
from pathlib import Path

from bert_kd.errors import UserError

BEARER = (b"www-authenticate", b'Bearer realm="bert_kd"')
BASIC = (b"www-authenticate", b'Basic realm="bert_kd", charset="UTF-8"')


class Keys:
    """The keys that open the server; none at all: it is open to whoever reaches it."""

    def __init__(self, keys: Iterable[str] = ()) -> None:
        # Digests have one length, so that a comparison tells nothing of a key's.
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def allow(self, authorization: bytes | None) -> bool:
        """Whether a request with this `Authorization` header may be answered."""
        if not self._digests:
            return True
        given = _given(authorization or b"")
        if given is None:
            return False
        digest = hashlib.sha256(given).digest()
        # All of them are compared, whichever it is.
        return any([hmac.compare_digest(digest, known) for known in self._digests])


def challenges(page: bool) -> tuple[tuple[bytes, bytes], ...]:
    """Return the headers that ask for a key; `page`: of a browser that opens a page.

    Basic, with the key as the password, lets it ask and go on, also with the page's own requests.
    Were these asked for it, too, the browser would ask behind the page's back. Each challenge is a
    header: of two in one, Chromium reads the first alone.
    """
    return (BEARER, BASIC) if page else (BEARER,)


def _given(authorization: bytes) -> bytes | None:
    """Return the key in the header's value, None where it holds none."""
    scheme, _, value = authorization.partition(b" ")
    value = value.strip()
    if scheme.lower() == b"bearer":
        return value
    if scheme.lower() == b"basic":
        try:
            return base64.b64decode(value, validate=True).partition(b":")[2]
        except binascii.Error:
            return None
    return None


def read_keys(key: str | None, file: Path | None) -> tuple[str, ...]:
    """Return the keys of `--api-key` and of a file with one a line; `#` begins a comment's line.

    Raises UserError where the file can't be read or holds none, or a key is no word of ASCII.
    """
    keys = [key] if key is not None else []
    if file is not None:
        try:
            lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"the file of API keys {file} cannot be read ({error})") from None
        found = [line for line in lines if line and not line.startswith("#")]
        if not found:
            raise UserError(f"the file of API keys {file} holds none: write one a line")
        keys += found
    for one in keys:
        if not one or not one.isascii() or not one.isprintable() or " " in one:
            raise UserError("an API key must be a word of ASCII characters, without spaces")
    return tuple(keys)
