"""Addresses with credentials: parsed, checked, and masked in texts."""

import json
import os
import re
import sys
from collections.abc import Iterator
from urllib.parse import quote, unquote

from roofscale.errors import ConfigError

HIDDEN = "***"
S3 = "s3://"  # prefix of an address in S3
DATA_SOURCE = "ROOFSCALE_DATA_SOURCE"  # variable of a job: where its data sets come from; {name} is a data set's name
_SECRET_VARIABLES = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_ENDS = re.compile(r"[/?#\s]")  # characters that end the authority, and so the credentials, of an address (RFC 3986)
_SHORTEST = 3  # characters; masking a shorter secret would hit parts of ordinary words


def credentials(address: str) -> str:
    """Return the ``user:password`` of an address; empty if it has none.

    Everything before the last @ counts, so that a password with unquoted reserved characters is found whole.
    """
    return address.partition("://")[2].rpartition("@")[0]


def require_quoted(name: str, address: str) -> None:
    """Check that the credentials of an address are percent-encoded.

    Otherwise libraries would split the address within the password, and print parts of that in their errors.

    Args:
        name: of the variable or option that holds the address, for the message.
        address: to be checked.

    Raises:
        ConfigError: the credentials contain / ? # or a blank.
    """
    if odd := _ENDS.search(credentials(address)):
        raise ConfigError(
            f"{name}={without_credentials(address)}: before the @ stands {odd[0]!r}, where an address ends its user "
            f"and password; expected {quote(odd[0], safe='')} in place of it. Quote the characters / ? # @ and blanks."
        )


def without_credentials(address: str) -> str:
    """Return an address with its credentials masked."""
    secret = credentials(address)
    return address.replace(f"://{secret}@", f"://{HIDDEN}@", 1) if secret else address


def without_secrets(text: str) -> str:
    """Return a text with credentials masked: those of addresses in it, and the secrets of this process.

    The latter come from the environment and the command line.
    """
    # The longest first: a secret may be part of another.
    for secret in sorted(set(_secrets()), key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return re.sub(r"(?<=://)\S*@", f"{HIDDEN}@", text)


def _secrets() -> Iterator[str]:
    """Yield every form in which a secret of this process may be printed, and the parts of an unquoted password."""
    passwords = [os.environ.get(name, "") for name in _SECRET_VARIABLES]
    for text in (*os.environ.values(), *sys.argv[1:]):
        for address in {text, *text.split()} if "://" in text else ():
            passwords.append(credentials(address).partition(":")[2])
    for password in passwords:
        plain = unquote(password)
        quoted = (quote(text, safe=safe) for text in (password, plain) for safe in ("/", ""))
        forms = (password, plain, *quoted, json.dumps(plain)[1:-1], repr(plain)[1:-1])
        parts = (part for form in forms[:2] for part in re.split(r"[/?#@:\s]", form))
        yield from (form for form in (*forms, *parts) if len(form) >= _SHORTEST)
