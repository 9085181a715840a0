"""Models that runs keep in the cache: made by one run at a time, and looked for by all its processes as one."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hf_unlearn.distributed import map_across_processes, owned_together
from hf_unlearn.files import clear_interrupted


def is_finished(folder: Path) -> bool:
    """Whether the cache has a model; the first process looks, since another run may finish it between two looks."""
    return map_across_processes(1, lambda _: (folder / "config.json").is_file())[0]


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Let one run at a time make the same cached model, all processes of it; a lock ends with its process.

    Raises:
        UserError: on every process, when the cache cannot be written to.
    """
    with owned_together(folder.parent / ".locks" / folder.name, "another training", "HF_UNLEARN_CACHE", wait=True):
        map_across_processes(1, lambda _: clear_interrupted(folder.parent, folder.name))
        yield
