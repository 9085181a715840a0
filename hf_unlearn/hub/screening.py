"""What must never be published: pickles, tokens, absolute paths and user names, looked for in every file to be sent."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from hf_unlearn.errors import UserError
from hf_unlearn.figures.drawing import is_plain_png
from hf_unlearn.models.weights import tensor_header
from hf_unlearn.parsing import PICTURE_DAMAGE

Content = Path | bytes

# A vocabulary may hold any word or path-like token, so only secrets and this machine's own paths are looked for there.
_VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "spiece.model")

_SECRET_VARIABLE = re.compile(r"(TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_?KEY|CREDENTIALS?)$", re.IGNORECASE)
_SECRET_FORMS = re.compile(
    r"\bhf_[A-Za-z0-9]{24,}|\bapi_org_[A-Za-z0-9]{24,}|\bgh[pousr]_[A-Za-z0-9]{30,}|\bsk-[A-Za-z0-9_-]{24,}"
    r"|\bAKIA[0-9A-Z]{16}\b|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
_ABSOLUTE_PATH = re.compile(
    r"(?<![\w./<\\-])/(?:[\w.@+~-]+/)+[\w.@+~-]*"  # /home/ada/runs
    r"|(?<=[\"'`])/[A-Za-z][\w.@+-]*"  # "/data"
    r"|(?<![\w/])~/[\w.@+-]+"  # ~/runs
    r"|\bfile://[\w./-]+"
    r"|\b[A-Za-z]:\\{1,2}[\w.-]+"  # C:\Users
)
_EVERYBODY = {"root", "user", "admin", "ubuntu", "debian", "runner", "jovyan", "nobody", "home", "default"}


def screen(files: Mapping[str, Content], *, token: str | None = None, public_names: Iterable[str] = ()) -> None:
    """Refuse to publish files that hold what must stay private.

    Args:
        files: The content of each file, or where it lies, by its path inside the repository.
        token: The token in use, to be looked for as well.
        public_names: Hub ids that may be named although a user name may be part of them.

    Raises:
        UserError: Something was found; the message lists every file and line, and never repeats a secret.
    """
    secrets = known_secrets(token)
    problems = [
        f"{name}: {problem}"
        for name, content in sorted(files.items())
        for problem in _problems(name, content, secrets, tuple(public_names))
    ]
    if problems:
        raise UserError("Nothing was published. Remove this first: " + "; ".join(problems) + ".")


def known_secrets(token: str | None = None) -> set[str]:
    """Collect what this process could leak: the token in use or logged in with, and the environment's secrets."""
    from huggingface_hub import get_token

    environment = {value for name, value in os.environ.items() if _SECRET_VARIABLE.search(name)}
    return {secret for secret in {token, get_token(), *environment} if secret and len(secret) >= 8}


def redacted(text: str) -> str:
    """Return a text with every secret that this process knows, and whatever has the form of a token, blotted out."""
    for secret in sorted(known_secrets(), key=len, reverse=True):  # one may be part of another
        text = text.replace(secret, "[secret]")
    return _SECRET_FORMS.sub("[secret]", text)


def _problems(name: str, content: Content, secrets: set[str], public_names: tuple[str, ...]) -> Iterator[str]:
    if isinstance(content, Path) and content.is_symlink():
        yield "is a link; put the file itself there"
        return
    if name.endswith(".safetensors"):
        texts = _safetensors_texts(content)
    elif name.endswith(".png"):
        texts = _png_texts(content)
    elif name.endswith(".model"):
        texts = None if _is_pickle(read_content(content)) else {"": read_content(content).decode("latin-1")}
    else:
        texts = _plain_text(read_content(content))
    if texts is None:
        yield "is not what its name says; a pickle or another binary file is never published"
        return
    for place, text in texts.items():
        for number, line in enumerate(text.splitlines(), start=1):
            where = place or f"line {number}"
            for finding in _findings(line, name in _VOCABULARIES, secrets, public_names):
                yield f"{where} holds {finding}"


def _findings(line: str, vocabulary: bool, secrets: set[str], public_names: tuple[str, ...]) -> Iterator[str]:
    if any(secret in line for secret in secrets) or _SECRET_FORMS.search(line):
        yield "a token or another secret"
    home = str(Path.home())
    if len(home) > 1 and re.search(re.escape(home) + r"\b", line):
        yield "the path of your home folder"
        return
    if vocabulary:
        return
    for public in public_names:
        line = line.replace(public, "")
    if path := _ABSOLUTE_PATH.search(line):
        yield f"the absolute path {path[0]}"
    for user in user_names():
        if re.search(rf"\b{re.escape(user)}\b", line):
            yield f"the user name {user}"


def user_names() -> set[str]:
    """Find out what the current user is called, leaving out names that thousands of machines share."""
    names = {os.environ.get(variable, "") for variable in ("USER", "LOGNAME", "USERNAME")} | {Path.home().name}
    return {name for name in names if len(name) >= 3 and name.lower() not in _EVERYBODY}


def read_content(content: Content) -> bytes:
    """The bytes of a file to be sent, or where it lies."""
    return content.read_bytes() if isinstance(content, Path) else content


def _is_pickle(data: bytes) -> bool:
    return data[:1] == b"\x80" or data[:2] == b"PK"  # protocol 2 and later; a zip archive, as torch.save writes


def _plain_text(data: bytes) -> dict[str, str] | None:
    if _is_pickle(data) or b"\0" in data:
        return None
    try:
        return {"": data.decode("utf-8")}
    except UnicodeDecodeError:
        return None


def _safetensors_texts(content: Content) -> dict[str, str] | None:
    """Return the free text in a safetensors header, or None where the file is not a whole safetensors file."""
    from safetensors import safe_open

    if not isinstance(content, Path):
        return None
    try:
        tensor_header(content)  # refuses what is not whole, and a field that stands there twice
    except UserError:
        return None
    with safe_open(content, "np") as opened:
        return {f"the metadata field {key}": value for key, value in (opened.metadata() or {}).items()}


def _png_texts(content: Content) -> dict[str, str] | None:
    """Return the text that a picture carries beside its pixels, or None where the file is no plain PNG."""
    import io

    from PIL import Image

    data = read_content(content)
    if not is_plain_png(data):
        return None
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
            picture.load()
            return {f"the text field {key}": str(value) for key, value in picture.info.items()}
    except (*PICTURE_DAMAGE, Image.DecompressionBombError):
        return None
