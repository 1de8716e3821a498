"""What tells one content of a file from another: a fast checksum against damage, and SHA-256.

The checksum is XXH3 of 128 bits (xxhash.com), which reads as fast as memory does: no damage goes
unseen, but who wants to can make two files of one checksum. SHA-256 guards against that, too, and
takes several times as long.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import xxhash

BYTES_PER_READ = 1 << 18
"""Few enough to stay in the CPU's cache until they are hashed."""


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksum(path: Path) -> str:
    """Return the XXH3 of a file as 32 hexadecimal digits."""
    state = xxhash.xxh3_128()
    buffer = bytearray(BYTES_PER_READ)
    view = memoryview(buffer)
    # Read, not mapped: a page of a mapping costs more to come by than its copy.
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            state.update(view[:count])
    return str(state.hexdigest())


def checksum_of(content: bytes) -> str:
    """Return the XXH3 of a file of this content."""
    return str(xxhash.xxh3_128_hexdigest(content))
