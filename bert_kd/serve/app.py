"""The endpoints: a request to a response, without a socket.

    POST /predict        {"inputs": …, "top_k": …} → what the predictor answers to the same
    POST /               {"inputs": …, "parameters": …} → as Hugging Face's inference API, by the
    POST /models/NAME    first model, or by this one
    GET  /health         whether it answers at all
    GET  /ready          whether it takes new requests
    GET  /info           bundles, limits, version
    GET  /metrics        Prometheus' metrics
    GET  /docs           the API as a page; /openapi.json as a document
    GET  /               a page to try them on

Every error is JSON, `{"error": what to do, "error_type": a word for programs}`. Not here: how texts
become answers (`bert_kd.runtime.predictor`), and sockets (`connection.py`).
"""

from __future__ import annotations

import asyncio
import math
import re
import traceback
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import asdict
from functools import partial
from hashlib import sha256
from pathlib import Path
from time import perf_counter

from msgspec import UNSET, UnsetType

import bert_kd
from bert_kd.errors import nearest
from bert_kd.serve import answers, openapi, wire
from bert_kd.serve.batcher import Job
from bert_kd.serve.keys import Keys, challenges
from bert_kd.serve.limits import Limits
from bert_kd.serve.logs import Log
from bert_kd.serve.messages import JSON, Reply, Request, Response
from bert_kd.serve.metrics import CONTENT_TYPE, Metrics
from bert_kd.serve.models import Model, Models
from bert_kd.serve.tracing import Trace
from bert_kd.serve.wire import Question, Refusal, Transform

PAGE = Path(__file__).parent / "page" / "index.html"
HTML = b"text/html; charset=utf-8"
IDENTITY = b"identity"
HOST = re.compile(r"[A-Za-z0-9._:\[\]-]{1,255}")
"""What a header `Host` may hold to be shown in an example."""
ENDPOINTS = ("predict", "inference", "health", "ready", "info", "metrics", "docs", "page", "other")
"""As metrics name them."""
COUNTED_CHARACTERS = 4096
"""Texts up to so many are counted in tokens on the event loop, where `truncate` is false."""
LOGGED_PATH = 200
"""Characters of a path in logs and spans."""

Answered = Callable[[Job], bytes]
Get = Callable[[Request], Response]


class App:
    """Answers requests with the models; all its methods are for the event loop's thread."""

    def __init__(
        self,
        models: Models,
        loop: asyncio.AbstractEventLoop,
        executor: Executor,
        *,
        limits: Limits,
        keys: Keys,
        metrics: Metrics,
        log: Log,
        workers: int = 1,
        log_requests: bool = True,
        log_texts: bool = False,
        trace: Trace | None = None,
    ) -> None:
        self.limits = limits
        self.stopping = False
        self.in_hand = 0
        """Requests for answers, those whose body is on the way included."""
        self._models = models
        self._loop = loop
        self._executor = executor
        self._keys = keys
        self._metrics = metrics
        self._log = log
        self._workers = workers
        self._log_requests = log_requests
        self._log_texts = log_texts
        self._trace = trace
        self._predict_reader = wire.Reader(wire.PredictRequest)
        self._inference_reader = wire.Reader(wire.InferenceRequest)
        self._document = openapi.document(models.names, bool(keys))
        page = html_response(PAGE.read_bytes())
        schema = Response(200, wire.encode(self._document))
        self._gets: Mapping[str, tuple[str, Get]] = {
            "/": ("page", lambda _: page),
            "/docs": ("docs", self._docs),
            "/openapi.json": ("docs", lambda _: schema),
            "/health": ("health", lambda _: Response(200, b'{"status":"ok"}')),
            "/ready": ("ready", self._ready),
            "/info": ("info", self._info),
            "/metrics": ("metrics", self._render),
        }

    # --- before the body -----------------------------------------------------------------------

    def admit(self, request: Request) -> None:
        """Look at a request whose headers have arrived. Raises Refusal: its body is not read."""
        path, method = request.path, request.method
        posts = path in ("/predict", "/") or path.startswith("/models/")
        gets = self._gets.get(path)
        if posts:
            request.label = "predict" if path == "/predict" else "inference"
        if gets is not None and method != "POST":
            request.label = gets[0]
        if path not in ("/health", "/ready") and not self._keys.allow(
            request.headers.get(b"authorization")
        ):
            raise Refusal(
                401,
                "unauthorized",
                "the API key is missing or wrong: send the header Authorization: Bearer KEY",
                challenges(request.label in ("page", "docs")),
            )
        if not posts and gets is None:
            raise Refusal(
                404, "not_found", "there is nothing at this path; /docs lists what there is"
            )
        if posts and method == "POST":
            self._admit_post(request)
        elif gets is None or method not in ("GET", "HEAD"):
            allowed = (["GET", "HEAD"] if gets is not None else []) + (["POST"] if posts else [])
            raise Refusal(
                405,
                "method_not_allowed",
                f"{method} is not answered at this path: use {_either(allowed)}",
                ((b"allow", ", ".join(allowed).encode()),),
            )

    def _admit_post(self, request: Request) -> None:
        kind = request.headers.get(b"content-type", b"")
        if kind != JSON and kind.partition(b";")[0].strip().lower() != JSON:
            raise Refusal(
                415,
                "unsupported_media_type",
                "send the body as JSON, with the header content-type: application/json",
            )
        if request.headers.get(b"content-encoding", IDENTITY).lower() != IDENTITY:
            raise Refusal(
                415,
                "unsupported_media_type",
                "compressed bodies are not read: send it without the header content-encoding",
            )
        if self.in_hand >= self.limits.concurrent_requests:
            raise _overloaded(f"{self.in_hand} requests are in hand")
        self.in_hand += 1
        request.admitted = True

    # --- answers -------------------------------------------------------------------------------

    def handle(self, request: Request, reply: Reply) -> None:
        """Answer a request: calls `reply`, now or later, once."""
        try:
            if request.method != "POST":
                reply(self._gets[request.path][1](request))
            elif request.path == "/predict":
                self._predict(request, reply)
            else:
                self._inference(request, reply)
        except Refusal as refusal:
            reply(self.refuse(refusal))
        except Exception as error:
            reply(self._fail(request, error))

    def refuse(self, refusal: Refusal) -> Response:
        """Return the response to a request that is not answered."""
        failure = wire.Failure(refusal.message, refusal.kind)
        return Response(refusal.status, wire.encode(failure), JSON, refusal.headers)

    def _predict(self, request: Request, reply: Reply) -> None:
        """Answer in the shapes of transformers' text-classification pipeline."""
        body = self._predict_reader.read(request.body)
        model = self._model(self._models.default if body.model is None else body.model)
        question = self._question(body.inputs, model)
        transform: Transform = "none" if body.raw_scores else "softmax"
        labels = model.labels
        top_k = body.top_k
        mapping = isinstance(body.inputs, wire.Pair)

        def write(job: Job) -> bytes:
            assert job.logits is not None
            if top_k is UNSET and not question.listed:
                found = answers.best(job.logits, labels, transform)
                return wire.encode(found[0] if mapping else found)
            count = None if isinstance(top_k, UnsetType) else top_k
            ranked = answers.ranked(job.logits, labels, count, transform)
            return wire.encode(ranked[0] if question.single else ranked)

        self._answer(request, reply, model, question, write, body.truncate is not False)

    def _inference(self, request: Request, reply: Reply) -> None:
        """Answer in the shape of Hugging Face's inference API: of each input all labels."""
        body = self._inference_reader.read(request.body)
        named = request.path.removeprefix("/models/")
        model = self._model(self._models.default if request.path == "/" else named)
        question = self._question(body.inputs, model)
        parameters = body.parameters or wire.Parameters()
        transform = parameters.function_to_apply or "softmax"
        labels = model.labels

        def write(job: Job) -> bytes:
            assert job.logits is not None
            return wire.encode(answers.ranked(job.logits, labels, parameters.top_k, transform))

        self._answer(request, reply, model, question, write, truncate=True)

    def _model(self, name: str) -> Model:
        if name not in self._models:
            known = self._models.names
            raise Refusal(
                404,
                "not_found",
                f"there is no model {ascii(name):.80}{nearest(name, known)}; served: "
                f"{', '.join(known)}",
            )
        return self._models[name]

    def _question(self, inputs: object, model: Model) -> Question:
        """Return the texts of `inputs` for a model; more of them than the limit are not read."""
        if isinstance(inputs, list) and len(inputs) > self.limits.texts:
            raise Refusal(
                413,
                "payload_too_large",
                f"{len(inputs)} texts were given, {self.limits.texts} are answered at a time: send "
                "them in several requests",
            )
        return wire.read_inputs(inputs, model.pair, model.name)

    def _answer(
        self,
        request: Request,
        reply: Reply,
        model: Model,
        question: Question,
        write: Answered,
        truncate: bool,
    ) -> None:
        """Have the question computed, and reply with what `write` makes of its job."""
        self._check(question)
        request.texts = len(question.texts)
        if self._log_texts:
            self._log.write(
                "info", "texts", request=request.id.decode(), texts=question.texts,
                texts_b=question.texts_b,
            )  # fmt: skip
        job = Job(
            question.texts, question.texts_b, partial(self._finish, request, reply, model, write)
        )
        request.work = job
        if truncate:
            model.batcher.submit(job)
        else:
            self._submit_whole(request, reply, model, job)

    def _submit_whole(self, request: Request, reply: Reply, model: Model, job: Job) -> None:
        """Submit a job whose texts may not be cut, once their tokens are counted."""

        def counted(too_long: int | None) -> None:
            if job.cancelled:
                return
            if too_long is not None:
                where = too_long % len(job.texts)
                reply(
                    self.refuse(
                        Refusal(
                            422,
                            "invalid_request",
                            f"inputs[{where}] is longer than the {model.max_tokens} tokens that "
                            "the model reads: leave truncate out, or shorten it",
                        )
                    )
                )
                return
            model.batcher.submit(job)

        texts = [*job.texts, *(job.texts_b or ())]
        if sum(map(len, texts)) <= COUNTED_CHARACTERS:
            counted(model.first_too_long(texts))
            return

        def on_thread(done: asyncio.Future[int | None]) -> None:
            if isinstance(error := done.exception(), Exception):
                reply(self._fail(request, error))
            else:
                counted(done.result())

        future = self._loop.run_in_executor(self._executor, model.first_too_long, texts)
        future.add_done_callback(on_thread)

    def _check(self, question: Question) -> None:
        """Raise Refusal where a text is longer than the limits, or too many wait already."""
        limits, count = self.limits, len(question.texts)
        for texts in (question.texts, question.texts_b):
            if texts and max(map(len, texts)) > limits.characters:
                longest = max(texts, key=len)
                raise Refusal(
                    413,
                    "payload_too_large",
                    f"inputs[{texts.index(longest)}] has {len(longest)} characters, "
                    f"{limits.characters} are read at most: shorten it",
                )
        if (queued := self._models.queued) and queued + count > limits.queued_texts:
            raise _overloaded(f"{queued} texts are waiting")

    def _finish(
        self, request: Request, reply: Reply, model: Model, write: Answered, job: Job
    ) -> None:
        """Reply with a computed job."""
        if job.error is not None:
            reply(self._fail(request, job.error))
            return
        queued = job.begun - job.submitted
        try:
            body = write(job)
            self._metrics.add("texts_total", model.name, amount=len(job.texts))
            self._metrics.observe("queue_seconds", model.name, value=queued)
        except Exception as error:
            reply(self._fail(request, error))
            return
        total = perf_counter() - request.arrived
        timing = b"predict;dur=%.3f, queue;dur=%.3f, compute;dur=%.3f" % (
            1e3 * total, 1e3 * queued, 1e3 * (job.done - job.begun),
        )  # fmt: skip
        reply(Response(200, body, JSON, ((b"server-timing", timing),)))

    def _fail(self, request: Request, error: Exception) -> Response:
        """Log a bug with its traceback, which no client sees."""
        self._log.write(
            "error", "bug", request=request.id.decode(),
            traceback="".join(traceback.format_exception(error)),
        )  # fmt: skip
        return self.refuse(
            Refusal(500, "internal", "the server failed to answer; its log says why")
        )

    # --- the server itself ---------------------------------------------------------------------

    def _ready(self, _: Request) -> Response:
        if self.stopping:
            raise Refusal(503, "stopping", "the server is stopping")
        return Response(200, b'{"status":"ready"}')

    def _docs(self, request: Request) -> Response:
        """The API as a page, whose examples ask where this request came to."""
        host = request.headers.get(b"host", b"").decode("ascii", "replace")
        known = HOST.fullmatch(host) is not None
        return html_response(openapi.page(self._document, host if known else "HOST").encode())

    def _info(self, _: Request) -> Response:
        known = {name: value for name, value in asdict(self.limits).items()}
        limits = {name: known[name] for name in wire.LimitsInfo.__struct_fields__}
        info = wire.Info(
            version=bert_kd.__version__,
            workers=self._workers,
            key_required=bool(self._keys),
            limits=wire.LimitsInfo(**limits),
            bundles=[self._models[name].info for name in self._models.names],
        )
        return Response(200, wire.encode(info))

    def _render(self, _: Request) -> Response:
        self.gauge()
        return Response(200, self._metrics.render(), CONTENT_TYPE)

    def gauge(self) -> None:
        """Set the gauges to what is in hand now."""
        self._metrics.set("requests_in_hand", self.in_hand)
        self._metrics.set("queued_texts", self._models.queued)

    def finished(self, request: Request, response: Response | None) -> None:
        """Count and log a request that has ended; `response` None: its client went away."""
        if request.admitted:
            request.admitted = False
            self.in_hand -= 1
        request.work = None  # it knows the request: as a ring they would wait for the collector
        label = request.label
        status = "closed" if response is None else str(response.status)
        seconds = perf_counter() - request.arrived if request.arrived else math.nan
        self._metrics.add("requests_total", label, status)
        if response is not None:
            self._metrics.observe("request_seconds", label, value=seconds)
        if self._log_requests and label not in ("health", "ready", "metrics"):
            self._log.write(
                "info", "request", request=request.id.decode(), method=request.method,
                path=request.path[:LOGGED_PATH], status=status, texts=request.texts,
                milliseconds=round(1e3 * seconds, 3),
            )  # fmt: skip
        if self._trace is not None and response is not None:
            self._trace(
                f"{request.method} {label}",
                request.headers,
                seconds,
                {
                    "http.request.method": request.method,
                    "url.path": request.path[:LOGGED_PATH],
                    "http.response.status_code": response.status,
                    "bert_kd.texts": request.texts,
                },
            )


def html_response(html: bytes) -> Response:
    """Return a page that may load nothing, and run and be styled by what stands in it alone."""
    allowed = {
        tag: b" ".join(
            b"'sha256-%b'" % b64encode(sha256(part).digest())
            for part in re.findall(b"<%b>(.*?)</%b>" % (tag, tag), html, re.DOTALL)
        )
        for tag in (b"style", b"script")
    }
    policy = b"; ".join(
        [
            b"default-src 'none'; connect-src 'self'; img-src data:; base-uri 'none'",
            b"form-action 'none'; frame-ancestors 'none'",
            *(b"%b-src %b" % (tag, hashes) for tag, hashes in allowed.items() if hashes),
        ]
    )
    return Response(200, html, HTML, ((b"content-security-policy", policy),))


def _either(words: Sequence[str]) -> str:
    return " or ".join([*([", ".join(words[:-1])] if words[1:] else []), words[-1]])


def _overloaded(why: str) -> Refusal:
    return Refusal(
        429,
        "overloaded",
        f"{why}, as much as the server takes on: ask again in a second",
        ((b"retry-after", b"1"),),
    )
