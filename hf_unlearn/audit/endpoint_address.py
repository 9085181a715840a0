"""An endpoint's address and token, checked before anything is asked or written; no message repeats a secret."""

import os
from urllib.parse import SplitResult, urlsplit, urlunsplit

from hf_unlearn.errors import UserError

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


def is_endpoint(name: str) -> bool:
    """Whether an encoder's name, as the user gave it, is an HTTP endpoint: `http://` or `https://`."""
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
    """The variable of the environment that holds the token of a side, `before` or `after`, such as
    `HF_UNLEARN_BEFORE_TOKEN`; `HF_UNLEARN_TOKEN` serves both.
    """
    return f"HF_UNLEARN_{side.upper()}_TOKEN"
