"""The committed golden numbers are those of today's code."""

import json
import os

import pytest
from golden_numbers import FOLDER, PARTS, differences, version, write

from experiments.runtime import code_version


@pytest.mark.usefixtures("shared_encoders")
@pytest.mark.parametrize("part", PARTS)
def test_numbers_are_what_they_were(part: str) -> None:
    numbers = PARTS[part]()
    if os.environ.get("GOLDEN") == "write":
        write(part, numbers)
    found = differences(part, numbers)
    assert not found, "\n".join([*found[:10], "meant to change? GOLDEN=write python -m pytest tests/golden"])


def test_a_changed_number_is_seen() -> None:
    numbers = json.loads((FOLDER / "metrics.json").read_text())
    assert differences("metrics", numbers) == []
    numbers["usage"]["perplexity"] *= 1.001
    del numbers["losses"]["l1"]
    assert len(differences("metrics", numbers)) == 2
    numbers = json.loads((FOLDER / "record.json").read_text())
    numbers["protocols"]["psnr"] = "another"
    assert len(differences("record", numbers)) == 1


def test_the_codes_version_is_the_digest_of_the_golden_numbers() -> None:
    assert version() == code_version.CODE or os.environ.get("GOLDEN") == "write"
