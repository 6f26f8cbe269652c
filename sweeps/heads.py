"""What stands beside and above the numbers of a table: what was trained, not what the paper's row is of."""

import re
from collections.abc import Sequence

from experiments.config.experiment import Experiment
from experiments.costs.counts import parts_of, setting_of
from lightning_modules.base import count
from sweeps.grid import Row, load_scale, show
from sweeps.measure import Finished, head_of, records_of

SIZE = r"(?:[- ]*(?:(?:Base|Large) )?\d+(?:\.\d+)?[MB]|-XL)$"  # of "GPT-404M", "VIM-Base 650M", "Large 1697M", "SiT-XL"
DATA_HEADS, GRID_HEADS = ("data", "trained on"), ("latent", "tokens")


def heads_of(scale: str, row: Row, finished: Finished, data: str) -> list[str]:
    """The row's heads. Where networks and images are small, sizes, grids and data sets are those of ours."""
    values = list(row.heads.items())
    if not row.runs or not load_scale(scale).is_small:
        return [show(value) for _, value in values]
    experiment, is_trained = row.runs[0].experiment, bool(records_of(row, finished))
    return [own_head(head, show(value), experiment, data if is_trained else "") for head, value in values]


def printed_label(scale: str, row: Row, finished: Finished, data: str) -> str:
    """Of the row in a legend or a sentence: LC, K 100,000. What it has none of is left out, but not its name."""
    texts = zip(row.heads.items(), heads_of(scale, row, finished, data), strict=True)
    words = [text if isinstance(value, str) else f"{head} {text}" for (head, value), text in texts if text]
    return ", ".join(words[:1] + [word for word in words[1:] if word != "none"])


def own_head(head: str, text: str, experiment: Experiment, data: str) -> str:
    rows, columns = setting_of(experiment).grid_size
    if head in DATA_HEADS:
        return data
    if head in GRID_HEADS and rows:
        return f"{rows} x {columns}" if " x " in text else f"{rows * columns:,}"
    if re.search(SIZE, text):
        while not experiment.model.generates and experiment.upstream is not None:
            experiment = experiment.upstream
        millions = sum(count(part.holder) for part in parts_of(experiment) if not part.is_apart) / 1e6
        return f"{re.sub(SIZE, '', text)} {millions:.1f}M".strip()
    return text


def retitled(title: str, protocols: Sequence[str]) -> str:
    """FID in a title only where Inception judges."""
    is_other = any(head_of("FID", protocol) != "FID" for protocol in protocols)
    return re.sub(r"\bFID\b", "Fréchet distance", title) if is_other else title
