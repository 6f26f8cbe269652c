import pytest

from lightning_modules.metrics import head_of


@pytest.mark.parametrize(
    ("head", "protocol", "expected"),
    [
        ("rFID", "rfid/efficientnet-lite2@64px/val-vs-val/n10000/uint8", "rFD (Lite2)"),
        ("rFID", "rfid/efficientnet-lite0@64px/val-vs-val/n10000/uint8", "rFD (Lite0)"),
        ("LDM FID", "fid/efficientnet-lite2@64px/generated-vs-train50000/n10000/uint8/t1", "LDM FD (Lite2)"),
        ("IS", "is/efficientnet-lite2@64px/generated-vs-train50000/n10000/uint8/t1", "IS (Lite2)"),
        ("KID", "kid/efficientnet-lite2@64px/val-vs-val/n10000/uint8", "KD (Lite2)"),
        ("rFID", "rfid/inception-v3-compat@299px/val-vs-val/n10000/uint8", "rFID"),
        ("FID", "fid/inception-v3-compat@299px/t1/accept-0.5-by-efficientnet-lite0@64px-head-top1-68.0", "FID"),
        ("LPIPS", "lpips/alex-v0.1@64px/n10000", "LPIPS"),
        ("rFID", "", "rFID"),
    ],
)
def test_only_inceptions_numbers_bear_its_names(head: str, protocol: str, expected: str) -> None:
    assert head_of(head, protocol) == expected
