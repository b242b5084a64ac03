"""Addresses that hold a password: taken apart, looked at, and shown without it."""

import json
import os
import re
import sys
from collections.abc import Iterator
from urllib.parse import quote, unquote

from roofscale.errors import ConfigError

HIDDEN = "***"
_SECRET_VARIABLES = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_ENDS = re.compile(r"[/?#\s]")  # what ends the part of an address that credentials stand in (RFC 3986)
_SHORTEST = 3  # characters of a secret that is looked for in a text; one of fewer would be found everywhere


def credentials(address: str) -> str:
    """What stands before the last @ of an address, however its password is misspelt: ``user:password``."""
    return address.partition("://")[2].rpartition("@")[0]


def require_quoted(name: str, address: str) -> None:
    """Refuse an address that would be cut in the middle of its password, parts of which libraries would then print.

    Raises:
        ConfigError: what stands before the last @ has a character that ends the credentials.
    """
    if odd := _ENDS.search(credentials(address)):
        raise ConfigError(
            f"{name}={without_credentials(address)}: before the @ stands {odd[0]!r}, where an address ends its user "
            f"and password; expected {quote(odd[0], safe='')} in place of it. Quote the characters / ? # @ and blanks."
        )


def without_credentials(address: str) -> str:
    """An address as it may be shown."""
    found = credentials(address)
    return address.replace(f"://{found}@", f"://{HIDDEN}@", 1) if found else address


def without_secrets(text: str) -> str:
    """A text without the credentials of any address in it, and without what the environment and the call hold."""
    for secret in sorted(set(_secrets()), key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return re.sub(r"(?<=://)\S*@", f"{HIDDEN}@", text)


def _secrets() -> Iterator[str]:
    """Every form in which a secret of this process may be printed, and the parts of a password that is not quoted."""
    passwords = [os.environ.get(name, "") for name in _SECRET_VARIABLES]
    for said in (*os.environ.values(), *sys.argv[1:]):
        for address in {said, *said.split()} if "://" in said else ():
            passwords.append(credentials(address).partition(":")[2])
    for password in passwords:
        plain = unquote(password)
        forms = (password, plain, quote(plain), quote(plain, safe=""), json.dumps(plain)[1:-1], repr(plain)[1:-1])
        parts = (part for form in forms[:2] for part in re.split(r"[/?#@:\s]", form))
        yield from (form for form in (*forms, *parts) if len(form) >= _SHORTEST)
