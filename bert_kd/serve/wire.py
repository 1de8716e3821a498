"""What goes over the wire: requests and responses as types, read from JSON and written to it.

The OpenAPI document is made of the same types (`openapi.py`). msgspec reads JSON and checks it
against a type in one pass: unknown fields, other types, NaN and half surrogates are refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Generic, Literal, TypeVar, get_args

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from bert_kd.errors import nearest

ErrorType = Literal[
    "invalid_json",
    "invalid_request",
    "invalid_http",
    "unauthorized",
    "not_found",
    "method_not_allowed",
    "request_timeout",
    "payload_too_large",
    "unsupported_media_type",
    "headers_too_large",
    "overloaded",
    "internal",
    "stopping",
    "timeout",
]
Transform = Literal["softmax", "sigmoid", "none"]


class Strict(Struct, forbid_unknown_fields=True, gc=False):
    """Unknown fields are refused."""


class Pair(Strict):
    """A text or, with `text_pair`, a pair of texts."""

    text: str
    text_pair: str | None = None


Texts = Annotated[list[str], Meta(min_length=1, max_length=2)]
TopK = Annotated[int, Meta(ge=1)]
ONE = 'a text, {"text": …, "text_pair": …} or [text, text_pair]'


class PredictRequest(Strict):
    """What to answer."""

    inputs: Annotated[
        str | Pair | list[str | Pair | Texts],
        Meta(
            description=f"A text, a pair as an object, or a list, each item {ONE}. A list of lists "
            "is answered as text-embeddings-inference answers it: all labels of each."
        ),
    ]
    top_k: Annotated[
        TopK | None | UnsetType,
        Meta(description="Labels for each input, best first; null: all; not given: the best one."),
    ] = UNSET
    raw_scores: Annotated[
        bool, Meta(description="Scores are the model's logits, not probabilities.")
    ] = False
    truncate: Annotated[
        bool | None,
        Meta(description="Cut texts at the model's longest (null, too); false: refuse longer."),
    ] = True
    truncation_direction: Annotated[
        Literal["Right"], Meta(description="Which end is cut, as text-embeddings-inference says.")
    ] = "Right"
    model: Annotated[
        str | None, Meta(description="Name of the bundle, where several are served; null: first.")
    ] = None


class Parameters(Strict):
    """Parameters of Hugging Face's text-classification task."""

    top_k: TopK | None = None
    function_to_apply: Transform | None = None


class Options(Strict):
    """Options of Hugging Face's inference API; they change nothing here."""

    use_cache: bool = True
    wait_for_model: bool = False


class InferenceRequest(Strict):
    """A request in the shape of Hugging Face's inference API."""

    inputs: str | Pair | list[str | Pair]
    parameters: Parameters | None = None
    options: Options | None = None


class Answer(Struct):
    """A label and its score."""

    label: str
    score: float


class Failure(Struct):
    """What went wrong, for people and for programs."""

    error: str
    error_type: ErrorType


class Status(Struct):
    """Whether the server answers."""

    status: str


class BundleInfo(Struct):
    """A bundle served."""

    name: str
    labels: list[str]
    pair: bool
    engine: str
    precision: str
    max_tokens: int | None
    parameters: int
    bytes: int
    created: str


class LimitsInfo(Struct):
    """What the server takes on; more is refused."""

    concurrent_requests: int
    queued_texts: int
    texts: int
    characters: int
    payload_bytes: int
    request_seconds: float


class Info(Struct):
    """What is served, the default bundle first."""

    version: str
    workers: int
    key_required: bool
    limits: LimitsInfo
    bundles: list[BundleInfo]


class Refusal(Exception):
    """A request that is not answered, and why."""

    def __init__(
        self,
        status: int,
        kind: ErrorType,
        message: str,
        headers: Iterable[tuple[bytes, bytes]] = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.message = message
        self.headers = tuple(headers)


HALF_SURROGATE = "a \\u escape is half of a surrogate pair: write both halves, or the character"
_HALF_AT_END = re.compile(rb"(?<!\\)(?:\\\\)*\\u[dD][89abAB].{0,7}\Z", re.DOTALL)
"""The first half of a pair that the end of the body cuts off."""
_END = 64
"""Bytes at the end of a body in which it is looked for."""
_CHOICES = {
    "function_to_apply": ", ".join(map(repr, get_args(Transform))),
    "truncation_direction": "'Right': a text is read from its beginning, and cut at its end",
}
"""What the fields with an enumeration take."""
Body = TypeVar("Body", PredictRequest, InferenceRequest)
_PLACE = re.compile(r"^(?P<what>.*?)(?: - at `(?P<place>.*)`)?$", re.DOTALL)
_UNKNOWN = re.compile(r"^Object contains unknown field `(?P<field>.*)`$", re.DOTALL)


class Reader(Generic[Body]):
    """Reads the body of one kind of request."""

    def __init__(self, kind: type[Body]) -> None:
        self._decoder: msgspec.json.Decoder[Body] = msgspec.json.Decoder(kind)
        self._fields = kind.__struct_fields__

    def read(self, body: bytes | bytearray) -> Body:
        """Return the request in `body`. Raises Refusal saying what is wrong, and where."""
        if not body:
            raise Refusal(400, "invalid_json", "the body is empty: send JSON")
        try:
            return self._decoder.decode(body)
        except msgspec.ValidationError as error:
            raise Refusal(422, "invalid_request", self._explain(str(error))) from None
        except UnicodeDecodeError:
            raise Refusal(400, "invalid_json", "the body is not UTF-8") from None
        except (msgspec.DecodeError, RecursionError) as error:
            why = HALF_SURROGATE if _is_half(body, str(error)) else error
            raise Refusal(400, "invalid_json", f"the body is not JSON: {why}") from None

    def _explain(self, message: str) -> str:
        """Return msgspec's message with the place as one writes it: `inputs[3].text_pair`."""
        found = _PLACE.match(message)
        what, place = (found["what"], found["place"] or "$") if found else (message, "$")
        place = place.removeprefix("$").removeprefix(".")
        if unknown := _UNKNOWN.match(what):
            field = unknown["field"]
            near = "" if place else nearest(field, self._fields)
            what = f"unknown field {ascii(field):.80}{near}"
        elif what.startswith("Invalid enum value"):
            what += f": give {_CHOICES[place.rpartition('.')[2]]}"
        what = what.replace("Expected `str`", "Expected a text").replace("`", "")
        return f"{place or 'the body'}: {what[0].lower()}{what[1:]}"


def _is_half(body: bytes | bytearray, message: str) -> bool:
    """Whether half a surrogate pair is what msgspec's message means.

    It names the pair, but where the body ends before the other half could, which it says of any
    body that ends too soon. The body itself is not searched: it can be long.
    """
    return "utf-16 surrogate" in message or (
        "truncated" in message and _HALF_AT_END.search(body, len(body) - _END) is not None
    )


class Question(Struct, frozen=True, gc=False):
    """The texts of a request, and the shape that its answer has."""

    texts: list[str]
    texts_b: list[str] | None
    single: bool
    """One input, not a list of them."""
    listed: bool = False
    """A list of lists, as text-embeddings-inference takes them."""


def read_inputs(inputs: Any, pair: bool, name: str) -> Question:
    """Return the texts of `inputs` for a model that compares two texts (`pair`) or reads one.

    Raises Refusal where they are of the other kind, or of several.
    """
    single = not isinstance(inputs, list)
    rows: Sequence[Any] = [inputs] if single else inputs
    texts: list[str] = []
    texts_b: list[str] = []
    lists = 0
    for row in rows:
        if type(row) is str:
            texts.append(row)
        elif type(row) is list:
            lists += 1
            texts.append(row[0])
            texts_b += row[1:]
        else:
            texts.append(row.text)
            if row.text_pair is not None:
                texts_b.append(row.text_pair)
    if lists and lists < len(rows):
        raise _invalid(f"inputs: {lists} of {len(rows)} are lists: give all in one form")
    if texts_b and len(texts_b) < len(texts):
        raise _invalid(
            f"inputs: {len(texts_b)} of {len(texts)} are pairs: give pairs or single texts"
        )
    if texts and bool(texts_b) != pair:
        raise _invalid(
            f"the model {name!r} compares two texts, and one was given: give "
            '{"text": …, "text_pair": …}'
            if pair
            else f"the model {name!r} reads single texts, and a pair was given: leave text_pair out"
        )
    return Question(texts, texts_b if pair else None, single, bool(lists))


def _invalid(message: str) -> Refusal:
    return Refusal(422, "invalid_request", message)


encode = msgspec.json.Encoder().encode
"""Writes any of these types, and what `answers.py` returns, as JSON in UTF-8."""
