"""The committed golden numbers are those of today's code."""

import json

import pytest

from tests.golden.numbers import FOLDER, PARTS, differences


@pytest.mark.usefixtures("shared_encoders")
@pytest.mark.parametrize("part", PARTS)
def test_numbers_are_what_they_were(part: str) -> None:
    found = differences(part, PARTS[part]())
    assert not found, "\n".join([*found[:10], "meant to change? python -m tests.golden --write"])


def test_a_changed_number_is_seen() -> None:
    numbers = json.loads((FOLDER / "metrics.json").read_text())
    assert differences("metrics", numbers) == []
    numbers["usage"]["perplexity"] *= 1.001
    del numbers["losses"]["l1"]
    assert len(differences("metrics", numbers)) == 2
