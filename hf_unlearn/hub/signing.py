"""Sign a model's folder (OpenSSF model signing), and check its signature and its time-stamp (RFC 3161), offline."""

import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from hf_unlearn.errors import UserError, missing_extra
from hf_unlearn.hub.verification_report import Outcome, Statement, failed, held, judged, unchecked
from hf_unlearn.records.file_names import DIGESTS_NAME, SIGNATURE_NAME, TOKEN_NAME, published_names


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turn what the signing package raises into one sentence; its faults have no common kind."""
    try:
        yield
    except ImportError as error:
        raise missing_extra("signing", "model-signing", "sign") from error
    except UserError:
        raise
    except Exception as error:  # those of cryptography and protobuf, too, of which none need be here
        raise UserError(f"{what}: {' '.join(str(error).split()) or type(error).__name__}") from error


def _lay_out(contents: Mapping[str, Path | bytes], folder: Path) -> None:
    """Put files into a folder of their own, for the package signs and checks folders."""
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Path):
            shutil.copyfile(content, folder / name)
        else:
            (folder / name).write_bytes(content)


def signature_of(contents: Mapping[str, Path | bytes], key: Path) -> bytes:
    """Sign what is to be published, with a private key on an elliptic curve.

    Args:
        contents: The content of each file, or where it lies, by its path inside the repository.
        key: The key, as PEM.

    Returns:
        The content of `model.sig`: an in-toto statement in a DSSE envelope.

    Raises:
        UserError: The package or the key is missing, or the key is of another kind.
    """
    if not key.is_file():
        raise UserError(f"there is no key {key}; name a private key on an elliptic curve, as PEM")
    with TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        _lay_out(contents, folder)
        signature = Path(temporary) / SIGNATURE_NAME
        with _explained(f"the folder cannot be signed with {key.name}"):
            from model_signing import hashing, signing

            hashes = hashing.Config().set_ignored_paths(paths=[], ignore_git_paths=True)
            config = signing.Config().use_elliptic_key_signer(private_key=key).set_hashing_config(hashes)
            config.sign(folder, signature)
        return signature.read_bytes()


def verify_signature(folder: Path, public_key: Path | None) -> Statement:
    """Check the signature of a folder's published files against a public key."""
    signature = folder / SIGNATURE_NAME
    if not signature.is_file():
        outcome = Outcome.FAILS if public_key is not None else Outcome.UNCHECKED
        return Statement("signature", outcome, "the model is not signed")
    if public_key is None:
        return unchecked("signature", "give the publisher's public key with --public_key")
    if not public_key.is_file():
        raise UserError(f"there is no key {public_key}; name the publisher's public key, as PEM")
    problem = "it is of other files, or was made with another key"
    with TemporaryDirectory() as temporary:
        copy = Path(temporary) / "model"
        # The time-stamp came after the signature.
        _lay_out({name: folder / name for name in published_names(folder) if name != TOKEN_NAME}, copy)
        try:
            with _explained(problem):
                from model_signing import hashing, verifying

                hashes = hashing.Config().set_ignored_paths(paths=[copy / SIGNATURE_NAME], ignore_git_paths=True)
                config = verifying.Config().use_elliptic_key_verifier(public_key=public_key)
                config.set_hashing_config(hashes).verify(copy, copy / SIGNATURE_NAME)
        except UserError as error:
            if isinstance(error.__cause__, ImportError):
                raise
            return failed("signature", str(error)[:300])
    return held("signature", f"every published file is signed by {public_key.name}")


def verify_token(folder: Path, authority: Path | None) -> Statement | None:
    """Check the RFC 3161 time-stamp of the digests, where there is one, against the authority's certificate.

    Returns:
        The statement; None where no time-stamp lies there.
    """
    token = folder / TOKEN_NAME
    if not token.is_file():
        return None
    if authority is None:
        return unchecked("time-stamp", "give the certificate of its authority with --tsa_certificate")
    if not authority.is_file():
        raise UserError(f"there is no certificate {authority}; name that of the time-stamp's authority, as PEM")
    if shutil.which("openssl") is None:
        return unchecked("time-stamp", "openssl is not installed here")
    given: list[str | Path] = ["-data", folder / DIGESTS_NAME, "-in", token, "-CAfile", authority]
    done = subprocess.run(["openssl", "ts", "-verify", *given], capture_output=True, timeout=60)
    told = subprocess.run(
        ["openssl", "ts", "-reply", "-in", token, "-text"], capture_output=True, text=True, errors="replace", timeout=60
    )
    moment = next((line.split(":", 1)[1].strip() for line in told.stdout.splitlines() if "Time stamp:" in line), "")
    problem = "it is of other digests, or of another authority"
    return judged("time-stamp", done.returncode == 0, f"the digests were there on {moment}", problem)
