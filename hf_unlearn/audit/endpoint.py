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
import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import SplitResult, urlsplit, urlunsplit

import numpy as np
import requests
from PIL import Image

from hf_unlearn.audit.embeddings import Array
from hf_unlearn.audit.transforms import Views
from hf_unlearn.errors import UserError

logger = logging.getLogger(__name__)

PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})  # statuses worth another try
TOO_LARGE = 413
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True)
class EndpointOptions:
    """How patiently an endpoint is asked.

    Args:
        batch_size: Items a request.
        attempts: Tries of one request before giving up.
        timeout: Seconds to wait for an answer.
        backoff: Seconds before the second try; doubled before every further one, unless the endpoint says how long.
        longest_wait: Seconds beyond which a wait is left to the user.

    Raises:
        UserError: When a batch is empty or there is no time to answer.
    """

    batch_size: int = 16
    attempts: int = 6
    timeout: float = 60.0
    backoff: float = 1.0
    longest_wait: float = 300.0

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UserError(f"An endpoint is asked about at least 1 item a request, not {self.batch_size}.")
        if not 0 < self.timeout < math.inf:
            raise UserError(f"The endpoint's timeout must be a number of seconds above 0, not {self.timeout:g}.")


class EmbeddingCache:
    """Answers on disk, keyed by the hash of the question; every batch is committed as it arrives.

    Args:
        path: An SQLite file; created when missing.

    Raises:
        UserError: When the file is something else.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            # The app measures in a worker thread; a cache is still used by one thread at a time.
            self._connection = sqlite3.connect(self.path, check_same_thread=False)
            with self._connection:
                self._connection.execute(
                    "CREATE TABLE IF NOT EXISTS answers (question TEXT PRIMARY KEY, vector BLOB, asked TEXT)"
                )
        except sqlite3.DatabaseError as error:
            raise UserError(f"The cache '{self.path.name}' is damaged ({error}); delete it and run again.") from error

    def __enter__(self) -> "EmbeddingCache":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()

    def get(self, question: str) -> tuple[Array, str] | None:
        """Look an answer up.

        Args:
            question: Its hash.

        Returns:
            The embedding `[d]` and when it was asked (UTC), or None.
        """
        row = self._connection.execute("SELECT vector, asked FROM answers WHERE question = ?", (question,)).fetchone()
        return None if row is None else (np.frombuffer(row[0], dtype=np.float64), row[1])

    def put(self, answers: dict[str, Array]) -> str:
        """Store one batch of answers, all or none.

        Args:
            answers: Hash of the question to embedding `[d]`.

        Returns:
            The time noted (UTC).
        """
        asked = datetime.now(UTC).isoformat(timespec="seconds")
        rows = [(question, vector.astype(np.float64).tobytes(), asked) for question, vector in answers.items()]
        with self._connection:
            self._connection.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?, ?)", rows)
        return asked


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

    def describe(self) -> dict[str, Any]:
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
                except _ChangedDimensionError as error:
                    raise UserError(f"The endpoint {self.url} {error}. {self._kept()}") from error
                self._times.append(known[1])
        open_ones = list({q: i for i, q in enumerate(questions) if q not in answers}.items())
        while open_ones:
            batch = open_ones[: self._batch_size]
            vectors = self._ask(kind, [content(i) for _, i in batch])
            if vectors is None:  # too large for the endpoint: ask for half as much
                self._batch_size = max(1, len(batch) // 2)
                continue
            fresh = {question: vector for (question, _), vector in zip(batch, vectors, strict=True)}
            self._times.append(self.cache.put(fresh))
            answers.update(fresh)
            open_ones = open_ones[len(batch) :]
        return np.stack([answers[question] for question in questions])

    def _checked(self, vector: Array) -> Array:
        """Refuse a dimension other than all earlier ones: then another model answers."""
        if self._dimension is None:
            self._dimension = len(vector)
        if len(vector) != self._dimension:
            raise _ChangedDimensionError(len(vector), self._dimension)
        return vector

    def _ask(self, kind: str, items: list[str]) -> list[Array] | None:
        """Send one batch until it is answered; None when it is too large and can be halved."""
        wait = self.options.backoff
        for attempt in range(1, self.options.attempts + 1):
            pause = None
            try:
                response = self._session.post(
                    self.url,
                    json=self._body(kind, items),
                    timeout=self.options.timeout,
                    allow_redirects=False,
                )
                if response.status_code == TOO_LARGE and len(items) > 1:
                    return None
                if response.status_code == requests.codes.ok:
                    return [self._checked(vector) for vector in self._vectors(response, len(items))]
                fault = f"answered {response.status_code}: {self._excerpt(response)}"
                if response.status_code not in PASSING:
                    raise UserError(f"The endpoint {self.url} {fault} {self._remedy(response.status_code)}")
                pause = retry_after(response.headers.get("Retry-After"))
            except requests.Timeout:
                fault = f"gave no answer within {self.options.timeout:g} s"
            except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError) as error:
                fault = f"could not be reached ({type(error).__name__})"
            except _ChangedDimensionError as error:
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

    def _kept(self) -> str:
        return (
            f"What it has answered is kept in '{self.cache.path.name}': run the same command again to go on, "
            "or delete that file to start over."
        )

    def _authorise(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._token:
            request.headers["Authorization"] = f"Bearer {self._token}"
        return request

    def _body(self, kind: str, items: list[str]) -> dict[str, Any]:
        if not self.openai:
            return {"inputs": items}
        body: dict[str, Any] = {"input": items, "encoding_format": "float"}
        if kind == "image":
            body |= {"input": [f"data:image/png;base64,{item}" for item in items], "modality": "image"}
        return body | {"model": self.model} if self.model else body

    def _vectors(self, response: requests.Response, count: int) -> list[Array]:
        """The embeddings in an answer; numbers that JSON writes as null come back as NaN."""
        try:
            answer = response.json()
            if self.openai:
                answer = [item["embedding"] for item in sorted(answer["data"], key=lambda item: item["index"])]
            array = np.array(answer, dtype=np.float64)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"The endpoint {self.url} answers in no form known here: {self._excerpt(response)} "
                "Use an OpenAI-style /v1/embeddings or an Inference Endpoint for embeddings, or files of embeddings."
            ) from error
        if array.ndim == 3 and array.shape[1] == 1:  # Inference Endpoints wrap each vector once more
            array = array[:, 0]
        if array.ndim != 2 or len(array) != count or array.shape[1] == 0:
            raise UserError(
                f"The endpoint {self.url} answered an array of shape {list(array.shape)} to {count} items; "
                "it must give one embedding an item, pooled."
            )
        return list(array)

    def _excerpt(self, response: requests.Response) -> str:
        """The start of an answer's text, without the token should the endpoint echo it."""
        text = " ".join(response.text.split())
        if self._token:
            text = text.replace(self._token, "[token]")
        return (text[:160] or response.reason or "no text") + "."

    def _remedy(self, status: int) -> str:
        if status in (401, 403):
            return f"Put a valid token into the environment variable {token_variable(self.side)}."
        return "Check the URL and that the endpoint embeds pictures."


class _ChangedDimensionError(Exception):
    """The endpoint's answers changed their length."""

    def __init__(self, now: int, earlier: int) -> None:
        super().__init__(f"answered {now} numbers where it gave {earlier} before, so its model has changed")


def is_endpoint(name: str) -> bool:
    """Whether an encoder's name is an HTTP endpoint.

    Args:
        name: What the user gave for an encoder.

    Returns:
        True for `http://` and `https://`.
    """
    return name.startswith(("http://", "https://"))


def check_endpoint(url: str, side: str) -> tuple[SplitResult, str | None]:
    """Check an endpoint's URL and token before anything is asked or written; no message repeats a secret.

    Args:
        url: The endpoint.
        side: `before` or `after`.

    Returns:
        The URL in parts, and the token for it, if there is one.

    Raises:
        UserError: When it is no URL or carries a secret, the token is none, or it would travel unencrypted.
    """
    try:
        parts = urlsplit(url)
        named = bool(parts.hostname and parts.port != 0)
    except ValueError:  # brackets that do not match, a port that is no number
        named = False
    if not named:
        raise UserError(f"The endpoint for the model {side} is no URL of a host; check its spelling.")
    if parts.username or parts.password or parts.query:
        raise UserError(
            f"The endpoint URL for the model {side} must carry no user, password or query, which may hold a "
            f"secret; put a token into the environment variable {token_variable(side)}."
        )
    token = _token(side)
    if token and parts.scheme != "https" and parts.hostname not in LOOPBACK:
        plain = urlunsplit(parts._replace(fragment=""))
        raise UserError(f"The endpoint {plain} would get its token unencrypted; use an https URL.")
    return parts, token


def _token(side: str) -> str | None:
    """The token for a side, without the line break that a file may have ended with."""
    for variable in (token_variable(side), "HF_UNLEARN_TOKEN"):
        token = os.environ.get(variable, "").strip()
        if not token:
            continue
        if not (token.isascii() and token.isprintable() and " " not in token):
            raise UserError(
                f"The environment variable {variable} holds a character that no token has (a blank?); set it anew."
            )
        return token
    return None


def token_variable(side: str) -> str:
    """Name the environment variable that holds an endpoint's token; `HF_UNLEARN_TOKEN` serves both.

    Args:
        side: `before` or `after`.

    Returns:
        `HF_UNLEARN_BEFORE_TOKEN` or `HF_UNLEARN_AFTER_TOKEN`.
    """
    return f"HF_UNLEARN_{side.upper()}_TOKEN"


def retry_after(header: str | None) -> float | None:
    """Read a Retry-After header: seconds, or an HTTP date.

    Args:
        header: The header's text, if the response had one.

    Returns:
        Seconds to wait, at least 0; None when the header is missing or unreadable.

    >>> retry_after("7"), retry_after("soon"), retry_after(None)
    (7.0, None, None)
    """
    if header is None:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        when = parsedate_to_datetime(header)
    except ValueError:
        return None
    if when.tzinfo is None:  # "-0000": a time in UTC that says nothing of where it was written
        when = when.replace(tzinfo=UTC)
    return max(0.0, (when - datetime.now(UTC)).total_seconds())


def png_base64(view: Views) -> str:
    """Encode one picture as it is sent.

    Args:
        view: `[side, side, 3]`.

    Returns:
        Base64 of a PNG file.
    """
    buffer = io.BytesIO()
    Image.fromarray(view).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")
