"""The one exception type for bad input, a sentence that names the item and the remedy; and a fault of the machine."""

import errno


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
