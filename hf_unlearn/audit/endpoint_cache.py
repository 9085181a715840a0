"""Answers of an endpoint on disk, from which a killed audit resumes."""

import sqlite3
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from hf_unlearn.audit.embeddings import Array
from hf_unlearn.errors import UserError

# What a damaged file names may be no text, and then sqlite cannot even say what is wrong.
FAULTS = (sqlite3.Error, UnicodeDecodeError)


class EmbeddingCache(AbstractContextManager["EmbeddingCache"]):
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
        except FAULTS as error:
            raise self._fault(error) from error

    def __exit__(self, *raised: object) -> None:
        self._connection.close()

    def get(self, question: str) -> tuple[Array, str] | None:
        """The answer to a question, known by its hash: the embedding `[d]` and when it was asked (UTC), or None."""
        try:
            row = self._connection.execute(
                "SELECT vector, asked FROM answers WHERE question = ?", (question,)
            ).fetchone()
        except FAULTS as error:
            raise self._fault(error) from error
        if row is None:
            return None
        if not isinstance(row[0], bytes) or len(row[0]) % 8 or not isinstance(row[1], str):
            raise UserError(f"The cache '{self.path.name}' holds what is no answer; delete it and run again.")
        vector = np.frombuffer(row[0], dtype=np.float64)
        return (vector, row[1]) if _is_kept(vector) else None  # asked again

    def put(self, answers: dict[str, Array]) -> str:
        """Store one batch of answers, embeddings `[d]` by the hash of the question, all or none.

        What is not finite, or empty as of a refused item, is left out, to be asked again.

        Returns:
            The time noted (UTC).
        """
        asked = datetime.now(UTC).isoformat(timespec="seconds")
        vectors = {question: vector.astype(np.float64) for question, vector in answers.items()}
        rows = [(key, vector.tobytes(), asked) for key, vector in vectors.items() if _is_kept(vector)]
        try:
            with self._connection:
                self._connection.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?, ?)", rows)
        except FAULTS as error:
            raise self._fault(error) from error
        return asked

    def _fault(self, error: Exception) -> UserError:
        """Locked by another audit is not damaged, nor is a full disk."""
        code = getattr(error, "sqlite_errorcode", None)
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return UserError(
                f"The cache '{self.path.name}' is in use by another audit; wait for it, or choose another output "
                "folder."
            )
        if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN):
            return UserError(
                f"The cache '{self.path.name}' cannot be written ({error}); see to the disk and its rights."
            )
        return UserError(f"The cache '{self.path.name}' is damaged ({error}); delete it and run again.")


def _is_kept(vector: Array) -> bool:
    return len(vector) > 0 and bool(np.isfinite(vector).all())
