"""An encoder behind an HTTP endpoint: batches, retries, and a cache on disk from which a killed run resumes.

Two forms are spoken. A URL that ends in `/embeddings` gets the OpenAI form, with pictures as data URIs:

    {"model": "...", "input": ["data:image/png;base64,..."], "encoding_format": "float", "modality": "image"}

any other URL gets the form of Text Embeddings Inference and Hugging Face Inference Endpoints, with plain base64:

    {"inputs": ["..."]}

A fragment names the model: `https://api.example.com/v1/embeddings#clip-unlearned`. Tokens come from the environment
alone and go into the Authorization header alone: never into a URL, file, log or message.
"""

import base64
import hashlib
import io
import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import urlunsplit

import numpy as np
import requests
from PIL import Image

from hf_unlearn.audit.embeddings import Array
from hf_unlearn.audit.endpoint_address import check_endpoint, token_variable
from hf_unlearn.audit.endpoint_answers import AnswerFaultError, http_alone, parse_answer, retry_after, too_slow, within
from hf_unlearn.audit.endpoint_cache import EmbeddingCache
from hf_unlearn.audit.transforms import Views
from hf_unlearn.errors import UserError

logger = logging.getLogger(__name__)

PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})  # statuses worth another try
TOO_LARGE = 413
REFUSED = frozenset({400, 404, 415, 422, 451})  # one of several items may be what is refused
LARGEST_ANSWER = 256 * 2**20  # bytes of one answer, unpacked


@dataclass(frozen=True)
class EndpointOptions:
    """How patiently an endpoint is asked.

    Args:
        batch_size: Items a request.
        attempts: Tries of one request before giving up.
        timeout: Seconds to wait for an answer.
        backoff: Seconds before the second try; doubled before every further one, unless the endpoint says how long.
        longest_wait: Seconds beyond which a wait is left to the user.
        deadline: Seconds in which one answer must be complete, however slowly it comes.

    Raises:
        UserError: When a batch is empty or there is no time to answer.
    """

    batch_size: int = 16
    attempts: int = 6
    timeout: float = 60.0
    backoff: float = 1.0
    longest_wait: float = 300.0
    deadline: float = 600.0

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UserError(f"An endpoint is asked about at least 1 item a request, not {self.batch_size}.")
        if not 0 < self.timeout < math.inf:
            raise UserError(f"The endpoint's timeout must be a number of seconds above 0, not {self.timeout:g}.")


class EndpointEncoder:
    """An embedding endpoint as a black box.

    Args:
        url: The endpoint; the fragment, if any, names the model.
        side: `before` or `after`: which of the two encoders it is. Part of every question's hash, so that one URL
            whose model was exchanged is really asked twice.
        cache: Where answers are kept.
        options: Batch size, patience.
        sleep: How to wait; a test may count instead.

    Raises:
        UserError: As `check_endpoint` does.
    """

    view_side = None
    deterministic = False

    def __init__(
        self,
        url: str,
        side: str,
        cache: EmbeddingCache,
        options: EndpointOptions | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        parts, self._token = check_endpoint(url, side)
        self.url = urlunsplit(parts._replace(fragment=""))
        self.model, self.side, self.cache = parts.fragment, side, cache
        self.options, self._sleep = options or EndpointOptions(), sleep
        self.openai = parts.path.rstrip("/").endswith("/embeddings")
        self._session = requests.Session()
        self._session.auth = self._authorise  # set even without a token, so that no ~/.netrc entry is sent instead
        self._batch_size = self.options.batch_size
        self._dimension: int | None = None
        self._times: list[str] = []

    def embed_images(self, views: Views, *, repeat: int = 0) -> Array:
        """Embed pictures `[m, side, side, 3]` as `[m, d]`; a repetition is asked even when the answer is known."""
        hashes = [hashlib.sha256(f"{view.shape}".encode() + view.tobytes()).hexdigest() for view in views]
        return self._embed("image", hashes, lambda i: png_base64(views[i]), repeat)

    def embed_texts(self, texts: Sequence[str]) -> Array:
        """Embed texts as `[m, d]`."""
        hashes = [hashlib.sha256(text.encode()).hexdigest() for text in texts]
        return self._embed("text", hashes, lambda i: texts[i], 0)

    def describe(self) -> dict[str, object]:
        """URL, model, form, and when it was asked."""
        return {
            "kind": "endpoint",
            "name": f"{self.url}#{self.model}" if self.model else self.url,
            "form": "openai" if self.openai else "inference-endpoints",
            "first_asked": min(self._times, default=None),
            "last_asked": max(self._times, default=None),
        }

    def _embed(self, kind: str, hashes: Sequence[str], content: Callable[[int], str], repeat: int) -> Array:
        questions = [
            hashlib.sha256(json.dumps([self.side, self.url, self.model, kind, repeat, item]).encode()).hexdigest()
            for item in hashes
        ]
        answers: dict[str, Array] = {}
        for question in questions:
            if (known := self.cache.get(question)) is not None:
                try:
                    answers[question] = self._checked(known[0])
                except AnswerFaultError as error:
                    raise UserError(f"The endpoint {self.url} {error}. {self._kept()}") from error
                self._times.append(known[1])
        open_ones = list({q: i for i, q in enumerate(questions) if q not in answers}.items())
        while open_ones:
            batch = open_ones[: self._batch_size]
            vectors = self._ask(kind, [content(i) for _, i in batch])
            if vectors is None:  # too large for the endpoint, or one of the items is refused: ask for half as much
                self._batch_size = max(1, len(batch) // 2)
                continue
            self._batch_size = min(self.options.batch_size, 2 * self._batch_size)
            fresh = {question: vector for (question, _), vector in zip(batch, vectors, strict=True)}
            self._times.append(self.cache.put(fresh))
            answers.update(fresh)
            open_ones = open_ones[len(batch) :]
        width = self._dimension
        if width is None:
            raise UserError(f"The endpoint {self.url} answered about none of {len(questions)} items. {self._kept()}")
        missing = np.full(width, np.nan)
        return np.stack([answers[question] if len(answers[question]) else missing for question in questions])

    def _checked(self, vector: Array) -> Array:
        """Refuse a dimension other than all earlier ones: then another model answers. An empty one is no answer."""
        if not len(vector):
            return vector
        if self._dimension is None:
            self._dimension = len(vector)
        if len(vector) != self._dimension:
            raise AnswerFaultError(
                f"answered {len(vector)} numbers where it gave {self._dimension} before, so its model has changed"
            )
        return vector

    def _ask(self, kind: str, items: list[str]) -> list[Array] | None:
        """Send one batch until it is answered; None when it is too large and can be halved."""
        wait = self.options.backoff
        for attempt in range(1, self.options.attempts + 1):
            pause = None
            try:
                status, text, pause = within(self.options.deadline, lambda: self._post(kind, items))
                if len(items) > 1 and (status == TOO_LARGE or (status in REFUSED and self._dimension is not None)):
                    return None
                if status == requests.codes.ok:
                    vectors = [self._checked(vector) for vector in self._vectors(text, len(items))]
                    if attempt == self.options.attempts or all(np.isfinite(vector).all() for vector in vectors):
                        return vectors
                    fault = "answered numbers that are not finite"
                elif status in REFUSED and self._dimension is not None:
                    logger.warning(
                        "The endpoint %s refuses one item (%d); it counts as not answered.", self.url, status
                    )
                    return [np.zeros(0)]
                elif status not in PASSING:
                    remedy = "Check the URL and that the endpoint embeds pictures."
                    if status in (401, 403):
                        remedy = f"Put a valid token into the environment variable {token_variable(self.side)}."
                    raise UserError(f"The endpoint {self.url} answered {status}: {self._excerpt(text)} {remedy}")
                else:
                    fault = f"answered {status}: {self._excerpt(text)}"
            except requests.Timeout:
                fault = f"gave no answer within {self.options.timeout:g} s"
            except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError) as error:
                fault = f"could not be reached ({type(error).__name__})"
            except AnswerFaultError as error:
                fault = str(error)
            except requests.RequestException as error:
                raise UserError(f"The endpoint {self.url} cannot be asked ({error}); check the URL.") from error
            wait_now = wait if pause is None else pause
            if attempt == self.options.attempts or wait_now > self.options.longest_wait:
                break
            logger.warning("The endpoint %s %s; trying again in %g s.", self.url, fault, wait_now)
            self._sleep(wait_now)
            wait *= 2
        raise UserError(f"The endpoint {self.url} {fault}; gave up after {attempt} tries. {self._kept()}")

    def _post(self, kind: str, items: list[str]) -> tuple[int, str, float | None]:
        """Status, text and wished-for pause of one request, within the largest size."""
        end = time.monotonic() + self.options.deadline
        with (
            http_alone(),
            self._session.post(
                self.url, json=self._body(kind, items), timeout=self.options.timeout, allow_redirects=False, stream=True
            ) as response,
        ):
            parts, size = [], 0
            for part in response.iter_content(2**16):
                parts.append(part)
                size += len(part)
                if size > LARGEST_ANSWER:
                    raise UserError(
                        f"The endpoint {self.url} answers more than {LARGEST_ANSWER // 2**20} MB to {len(items)} "
                        "items; ask for fewer at once (--endpoint_batch_size), or check the URL."
                    )
                if time.monotonic() > end:  # nobody waits for it any longer
                    raise too_slow(self.options.deadline)
            pause = retry_after(response.headers.get("Retry-After"))
            return response.status_code, b"".join(parts).decode("utf-8", "replace"), pause

    def _kept(self) -> str:
        return (
            f"What it has answered is kept in '{self.cache.path.name}': run the same command again to go on, "
            "or delete that file to start over."
        )

    def _authorise(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._token:
            request.headers["Authorization"] = f"Bearer {self._token}"
        return request

    def _body(self, kind: str, items: list[str]) -> dict[str, object]:
        if not self.openai:
            return {"inputs": items}
        body: dict[str, object] = {"input": items, "encoding_format": "float"}
        if kind == "image":
            body |= {"input": [f"data:image/png;base64,{item}" for item in items], "modality": "image"}
        return body | {"model": self.model} if self.model else body

    def _vectors(self, text: str, count: int) -> list[Array]:
        """The embeddings in an answer; numbers that JSON writes as null come back as NaN."""
        try:
            array = parse_answer(text, count, openai=self.openai)
        except (ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
            raise UserError(
                f"The endpoint {self.url} answers in no form known here ({type(error).__name__}): "
                f"{self._excerpt(text)} Use an OpenAI-style /v1/embeddings or an Inference Endpoint for embeddings, or "
                "files of embeddings."
            ) from error
        if array.ndim == 3 and array.shape[1] == 1:  # Inference Endpoints wrap each vector once more
            array = array[:, 0]
        if array.ndim != 2 or len(array) != count or array.shape[1] == 0:
            raise UserError(
                f"The endpoint {self.url} answered an array of shape {list(array.shape)} to {count} items; "
                "it must give one embedding an item, pooled."
            )
        return list(array)

    def _excerpt(self, text: str) -> str:
        """The start of an answer's text, without the token should the endpoint echo it, and without control
        characters.
        """
        text = " ".join(text.split())
        if self._token:
            text = text.replace(self._token, "[token]")
        return "".join(letter if letter.isprintable() else "?" for letter in text[:160] or "no text") + "."


def png_base64(view: Views) -> str:
    """A picture `[side, side, 3]` as it is sent: base64 of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(view).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")
