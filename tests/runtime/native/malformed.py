"""Opens thousands of damaged bundles in this process: `python malformed.py BUNDLE [FLIPS]`.

Every one must be refused with BundleError or, where the damage left a valid file, answer. A crash
ends the process by a signal, which the caller sees (`test_malformed.py`; under sanitizers,
`sanitize.py`).
"""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bert_kd.errors import BundleError
from bert_kd.runtime.predictor import load

TEXTS = ["the film was very good", "", "not bad , zzz " * 30]
Header = dict[str, Any]
HUGE = (2**31, 2**32, 2**53, 2**61, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**30)


class File:
    """A safetensors file taken apart."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        length = int.from_bytes(content[:8], "little")
        self.header: Header = json.loads(content[8 : 8 + length])
        self.start = 8 + length
        self.data = content[self.start :]
        self.names = [name for name in self.header if name != "__metadata__"]

    def with_header(self, header: Header | bytes) -> bytes:
        """Return the file with another header before the same data."""
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + self.data


def truncated(file: File) -> Iterator[bytes]:
    edges = {0, 8, file.start, len(file.content)}
    for name in file.names:
        edges |= {file.start + offset for offset in file.header[name]["data_offsets"]}
    for edge in sorted(edges):
        for size in range(edge - 2, edge + 3):
            if 0 <= size < len(file.content):
                yield file.content[:size]
    yield from (file.content[:size] for size in range(8, file.start, 37))


def other_lengths(file: File) -> Iterator[bytes]:
    size = len(file.content)
    for length in {0, 1, 2, 7, file.start - 9, file.start - 7, size - 9, size - 8, size - 7, size}:
        yield length.to_bytes(8, "little") + file.content[8:]
    for length in HUGE:
        if length < 2**64:
            yield length.to_bytes(8, "little") + file.content[8:]
    yield file.content + b"\0"


def other_texts(file: File) -> Iterator[bytes]:
    text = file.content[8 : file.start]
    yield from map(
        file.with_header,
        [
            b"",
            b"{",
            b"{}",
            b"[]",
            b"null",
            b'"text"',
            b"\xff\xfe{}",
            b"[" * 200_000,
            b'{"a":' * 100_000,
            b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
            b'{"' + b"a" * 200_000,
            b'{"\\u12',
            b'{"\\ud800":1}',
            text.rstrip() + b"x",
            text.replace(b"0", b"1e400"),
            text.replace(b"0", b"-0"),
            text.replace(b":", b"::"),
            text + b" " * 100_000,
            text.rstrip()[:-1] + b"," + text[1:],  # every key twice
        ],
    )


def other_entries(file: File) -> Iterator[bytes]:
    def edited(change: Callable[[Header], object]) -> bytes:
        header = copy.deepcopy(file.header)
        change(header)
        return file.with_header(header)

    numbers: list[Any] = [-1, 0, 1, 0.5, 1e300, True, None, "4", [], 2**31, 2**62, 2**64]
    for name in file.names:
        shape = file.header[name]["shape"]
        yield edited(lambda header, name=name: header.pop(name))
        for dtype in ("F64", "F32", "F16", "BF16", "I8", "U8", "", None, 3):
            yield edited(lambda header, name=name, d=dtype: header[name].update(dtype=d))
        for key in ("dtype", "shape", "data_offsets"):
            yield edited(lambda header, name=name, key=key: header[name].pop(key))
        for value in numbers:
            yield edited(lambda header, name=name, v=value: header.update({name: v}))
            for key in ("shape", "data_offsets"):
                yield edited(lambda header, name=name, k=key, v=value: header[name].update({k: v}))
            for place in range(2):
                yield edited(
                    lambda header, name=name, at=place, v=value: header[name][
                        "data_offsets"
                    ].__setitem__(at, v)
                )
            for place in range(len(shape)):
                yield edited(
                    lambda header, name=name, at=place, v=value: header[name]["shape"].__setitem__(
                        at, v
                    )
                )
        yield edited(lambda header, name=name: header[name]["data_offsets"].reverse())
        yield edited(lambda header, name=name: header[name]["shape"].reverse())
        yield edited(lambda header, name=name: header[name].update(shape=[2] * 64))
        yield edited(lambda header, name=name: header[name].update(shape=[2**32, 2**32]))
        yield edited(lambda header, name=name, s=shape: header[name].update(shape=[0, *s]))
        other = random.Random(name).choice(file.names)
        yield edited(lambda header, name=name, o=other: header.update({name: header[o]}))
    for count in (1, 1000):
        entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
        yield edited(
            lambda header, n=count, e=entry: header.update({f"extra{at}": e for at in range(n)})
        )


def other_metadata(file: File) -> Iterator[bytes]:
    known = file.header["__metadata__"]
    shape = json.loads(known["shape"])

    def with_metadata(metadata: Any) -> bytes:
        return file.with_header({**file.header, "__metadata__": metadata})

    yield from map(with_metadata, [{}, None, 3, [], {"format": 1}])
    for name in known:
        yield with_metadata({key: value for key, value in known.items() if key != name})
        for value in ("", "0", "2", "{", "[[" * 50_000, "null", "fp8", "\ud800", "\0", 3, None, {}):
            yield with_metadata({**known, name: value})
    values: list[Any] = [-1, 0, 1, 0.5, 2**14, 2**20, 2**30, *HUGE, True, None, "9", [], "median"]
    for key in shape:
        rest = {other: value for other, value in shape.items() if other != key}
        yield with_metadata({**known, "shape": json.dumps(rest)})
        for value in values:
            yield with_metadata({**known, "shape": json.dumps({**shape, key: value})})


def other_values(file: File) -> Iterator[bytes]:
    for name in file.names:
        start, end = file.header[name]["data_offsets"]
        width = {"F32": 4, "F16": 2, "BF16": 2, "I8": 1}[file.header[name]["dtype"]]
        patterns = {
            4: (b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\0\0\x80\xff", b"\xff\xff\x7f\x7f"),
            2: (b"\0\x7e", b"\0\x7c", b"\0\xfc", b"\xff\x7b", b"\xc0\x7f", b"\x80\x7f"),
            1: (b"\x80", b"\x7f"),
        }[width]
        for pattern in patterns:
            for at in (slice(start, start + width), slice(end - width, end), slice(start, end)):
                data = bytearray(file.data)
                data[at] = pattern * ((at.stop - at.start) // width)
                yield file.content[: file.start] + bytes(data)


def flipped(file: File, count: int) -> Iterator[bytes]:
    """Yield files with a few other bytes, in the header as often as behind it."""
    chance = random.Random(7)
    for turn in range(count):
        content = bytearray(file.content)
        last = file.start if turn % 2 else len(content)
        for _ in range(chance.choice((1, 1, 2, 8))):
            content[chance.randrange(last)] = chance.randrange(256)
        yield bytes(content)


def main(bundle: Path, flips: int) -> None:
    folder = Path(shutil.copytree(bundle, Path(tempfile.mkdtemp()) / "bundle"))
    path = folder / "native.safetensors"
    file = File(path.read_bytes())
    kinds = {
        "truncated": truncated(file),
        "lengths": other_lengths(file),
        "texts": other_texts(file),
        "entries": other_entries(file),
        "metadata": other_metadata(file),
        "values": other_values(file),
        "flipped": flipped(file, flips),
    }
    pair = load(folder, "native").pair
    found = {}
    for kind, contents in kinds.items():
        refused = answered = 0
        for number, content in enumerate(contents):
            # A new file each time: one that is still mapped must not change.
            path.unlink()
            path.write_bytes(content)
            os.environ["MALFORMED"] = f"{kind} {number}"  # for whoever looks at a core dump
            try:
                predictor = load(folder, "native", threads=2, verify=False)
                predictor.logits(TEXTS, TEXTS[::-1] if pair else None)
                answered += 1
            except BundleError:
                refused += 1
        found[kind] = {"refused": refused, "answered": answered}
    shutil.rmtree(folder.parent)
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 300)
