"""The one exception type for bad input, a sentence that names the item and the remedy; and a fault of the machine."""

import errno
from collections.abc import Iterable
from itertools import islice
from math import inf

LISTED = 20  # items that a message names at most


class UserError(ValueError):
    """Bad input from the user, told in one sentence that names the item and the remedy.

    The command line prints the message alone and exits with status 2; in Python it is an ordinary `ValueError`.
    """


class DivergenceError(UserError):
    """A training that cannot be used: its numbers were not finite, or what they led to cannot be measured."""


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether memory, the host's or an accelerator's, did not suffice; PyTorch tells it in a `RuntimeError`."""
    words = ("out of memory", "DefaultCPUAllocator: can't allocate memory")
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(w in str(error) for w in words))


def is_disk_full(error: BaseException) -> bool:
    """Say whether a write failed for want of space."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    # safetensors passes the system's words on; torch.save only says that its writer failed.
    return any(words in str(error) for words in ("No space left on device", "PytorchStreamWriter", "inline_container"))


def first_line(error: BaseException) -> str:
    """The first line of what an error of another library says, or its kind where it says nothing.

    Example:
        >>> first_line(OSError("it is damaged\\nat byte 7")), first_line(OSError())
        ('it is damaged', 'OSError')
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def sentence_of_panic(error: BaseException) -> str | None:
    """What to say where the tokenizers package gave up on a text, by an exception that is no `Exception`."""
    if type(error).__name__ != "PanicException":  # which no module exports
        return None
    words = (str(error).strip() or "no further words").splitlines()[0]
    return f"the tokenizer gave up on a text ({words})"


def missing_extra(needing: str, package: str, extra: str) -> UserError:
    """The error for a package that an extra of this library brings along, with the line that installs it.

    Example:
        >>> str(missing_extra("LoRA", "peft", "peft"))
        'LoRA needs the package peft; install it with pip install -e ".[peft]" in a clone of hf_unlearn'
    """
    return UserError(
        f'{needing} needs the package {package}; install it with pip install -e ".[{extra}]" in a clone of hf_unlearn'
    )


def no_such_model(name: str) -> UserError:
    """The error for a name that is neither a folder here nor one that a repository on the Hub may have."""
    return UserError(f"{name!r} is neither a folder nor a Hub id; name a folder that is there, or owner/name")


def check_ranges(settings: object, ranges: Iterable[tuple[str, float, float]]) -> None:
    """Refuse a setting outside its range, of which the ends belong to it and infinity does not; None is none.

    Args:
        settings: Has the settings as attributes.
        ranges: Name, least and greatest value of each.

    Raises:
        UserError: One is outside.
    """
    for name, least, most in ranges:
        value = getattr(settings, name)
        if value is not None and not (least <= value <= most and value < inf):
            limits = f"from {least} to {most}" if most < inf else f"a number of at least {least}"
            raise UserError(f"{name}={value} must be {limits}")


def listed(items: Iterable[object], total: int | None = None, most: int = LISTED) -> str:
    """Join items by commas, the first 20 of them, followed by how many more there are.

    Args:
        items: What is to be listed.
        total: How many items there are where `items` holds only the first ones.
        most: How many are named, where 20 are too many.

    Example:
        >>> listed(["a", "b"])
        'a, b'
        >>> listed(range(300)).endswith("18, 19 and 280 more")
        True
    """
    iterator = iter(items)
    shown = [str(item) for item in islice(iterator, most)]
    more = sum(1 for _ in iterator) if total is None else total - len(shown)
    return ", ".join(shown) + (f" and {more:,} more" if more else "")
