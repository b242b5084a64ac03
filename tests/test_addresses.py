"""No part of a password is shown, however odd it is and however the address around it is misspelt."""

import re
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from roofscale.addresses import credentials, require_quoted, without_credentials, without_secrets
from roofscale.errors import ConfigError

# Letters that stand in no message of ours, so that finding them there means a leak.
odd = st.text(st.sampled_from("QXZ7/?#@: %\\'\"+&=é"), min_size=4, max_size=20).filter(
    lambda t: re.search("[QXZ7]{3}", t)
)


@given(odd)
def test_an_address_is_shown_without_its_password(password: str) -> None:
    for host in ("127.0.0.1:9", "host/path", "host:5432/db?sslmode=require"):
        address = f"http://anna:{password}@{host}"
        assert without_credentials(address) == f"http://***@{host}"
        assert credentials(address) == f"anna:{password}"


@given(odd)
@example("%777")  # quoted already: another quoting makes %25777 of it
def test_no_part_of_it_is_left_in_a_text(password: str) -> None:
    address = f"http://anna:{password}@127.0.0.1:9"
    texts = [
        f"Invalid url: {address}/api",
        f"Failed to parse: http://anna:{re.split('[/?#]', password)[0]}",
        f"{address} and {password!r} and {quote(password, safe='')}",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", address)
        for text in texts:
            said = without_secrets(text)
            for part in re.findall("[QXZ7]{3,}", password):
                assert part not in said, (text, said)


@given(odd)
def test_one_that_is_not_quoted_is_refused_without_being_said(password: str) -> None:
    address = f"http://anna:{password}@127.0.0.1:9"
    if re.search(r"[/?#\s]", password):
        with pytest.raises(ConfigError) as refused:
            require_quoted("MLFLOW_TRACKING_URI", address)
        assert not re.search("[QXZ7]{3}", str(refused.value))
    require_quoted("MLFLOW_TRACKING_URI", f"http://anna:{quote(password, safe='')}@127.0.0.1:9")


@pytest.mark.parametrize("address", ["http://127.0.0.1:5000", "sqlite:///mlflow.db", "s3://bucket/a", "mlflow.db", ""])
def test_an_address_without_credentials_is_shown_as_it_is(address: str) -> None:
    assert without_credentials(address) == without_secrets(address) == address
    require_quoted("X", address)
