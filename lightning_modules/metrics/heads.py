"""What a column of a table may be called."""

import re


def head_of(head: str, protocol: str) -> str:
    """The head of a column whose numbers have this protocol id: "rFID" of EfficientNet-Lite2 is "rFD (Lite2)".

    FID, KID and Inception Score are of Inception's features: another network's numbers have another scale, and their
    head says whose they are. A head that comes back unchanged may stand above a paper's number and ours alike.
    """
    extractor = re.match(r"[^/]+/efficientnet-lite(\d)@", protocol)
    if extractor is None:
        return head
    name = re.sub("([FK])ID", r"\1D", head)
    return f"{name} (Lite{extractor[1]})"
