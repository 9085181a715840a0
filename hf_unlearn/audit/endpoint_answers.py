"""What an endpoint answered, read with care: its text, and when to come back."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from threading import Thread
from typing import TypeVar

import numpy as np
import requests

from hf_unlearn.errors import UserError
from hf_unlearn.metrics.alignment_matrices import Matrix

DEEPEST = 12
"""Brackets within brackets of an answer, at most."""
MOST_BRACKETS = 4_000
"""Brackets of an answer for each item asked about, at most: an embedding for each token can be told from noise."""
_BRACKETS = re.compile(r"[\[\]{}]")

T = TypeVar("T")


class AnswerFaultError(Exception):
    """An answer that cannot be used, though the next one may: it came too slowly, is no HTTP, or of another length."""


def too_slow(seconds: float) -> AnswerFaultError:
    """The fault of an answer that has not come within so many seconds."""
    return AnswerFaultError(f"had not finished its answer within {seconds:g} s")


@contextmanager
def http_alone() -> Iterator[None]:
    """Tell what urllib3 and http.client let out of a part of negative length, or of an address that is none.

    Raises:
        AnswerFaultError: The answer is no HTTP.
    """
    try:
        yield
    except (UserError, requests.RequestException):  # which are errors of values, too
        raise
    except ValueError as error:
        raise AnswerFaultError(f"answered what is no HTTP ({error})") from error


def within(seconds: float, work: Callable[[], T]) -> T:
    """The result of a piece of work that ends in time; one that does not is left to itself.

    A socket's own timeout begins anew with every byte that drips in, be it of a header or of an answer.

    Raises:
        AnswerFaultError: When it has not ended.
    """
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:  # noqa: BLE001  # raised again where it is waited for
            done.set_exception(error)

    Thread(target=run, daemon=True).start()
    try:
        return done.result(seconds)
    except TimeoutError as error:
        if done.done():
            raise
        raise too_slow(seconds) from error


def parse_answer(text: str, count: int, *, openai: bool) -> Matrix:
    """The numbers of an answer; those that JSON writes as null come back as NaN.

    Args:
        text: JSON.
        count: How many items were asked about.
        openai: Whether the answer is in the OpenAI form, with an index for each embedding.

    Returns:
        Array of any shape; whether it is one embedding an item is left to the caller.

    Raises:
        ValueError, KeyError, TypeError, OverflowError, RecursionError: When it is no such answer.
    """
    if sum(map(text.count, "[]{}")) > MOST_BRACKETS * (count + 1):  # before a list of them is made
        raise ValueError(f"more than {MOST_BRACKETS} brackets an item")
    if _depth(text) > DEEPEST:
        raise ValueError(f"more than {DEEPEST} brackets within brackets")
    answer = json.loads(text)
    return np.array(_in_order(answer["data"], count) if openai else answer, dtype=np.float64)


def _in_order(data: Iterable[Mapping[str, object]], count: int) -> list[object]:
    """The embeddings of an OpenAI-style answer by index, which must be exactly 0 to count - 1.

    Raises:
        ValueError: When an index is missing, repeated or no whole number.
    """
    found: dict[int, object] = {}
    for item in data:
        index = item["index"]
        if isinstance(index, bool) or not isinstance(index, int) or index in found:
            raise ValueError("an index is repeated or no whole number")
        found[index] = item["embedding"]
    if set(found) != set(range(count)):
        raise ValueError(f"its indices are not 0 to {count - 1}")
    return [found[index] for index in range(count)]


def _depth(text: str) -> int:
    """Brackets within brackets at the deepest place, of the first that open; strings are not told apart."""
    depth = deepest = 0
    for letter in _BRACKETS.findall(text):
        depth += 1 if letter in "[{" else -1
        deepest = max(deepest, depth)
    return deepest


def retry_after(header: str | None) -> float | None:
    """Read a Retry-After header, seconds or an HTTP date: seconds to wait, at least 0; None if missing or unreadable.

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
    except (ValueError, OverflowError):  # a year of twenty digits
        return None
    if when.tzinfo is None:  # "-0000": a time in UTC that says nothing of where it was written
        when = when.replace(tzinfo=UTC)
    return max(0.0, (when - datetime.now(UTC)).total_seconds())
