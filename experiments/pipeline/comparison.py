"""Several runs beside each other: how they differ, their numbers, curves and code counts, the same images of each.

Shapes: N images of S x S pixels.
"""

from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from datamodules.arrays import to_unit_range
from datamodules.files import ImageFile, read_framed
from experiments.pipeline.build import build_data, first_images, plain
from experiments.pipeline.page import Image, Section, Table, drawn, pixels
from experiments.pipeline.run_folders import RunFolder, columns_of, differing
from lightning_modules import Prior, Tokenizer
from lightning_modules.metrics.extractors import to_uint8
from lightning_modules.metrics.reconstruction import per_image_psnr, to_unit
from lightning_modules.tokenizer_parts import CODE_USES

NUM_IMAGES = 8
SIZES = {"scalars": 500, "histograms": 1, "images": 1, "tensors": 1, "compressedHistograms": 1}  # of what is read
FACTS = {  # of a record, and their heads
    "data_id": "images", "device": "device", "num_devices": "devices", "num_concurrent": "runs at a time",
    "images_per_second": "images/s", "wall_seconds": "seconds", "parameters": "parameters",
}  # fmt: skip


def sections(runs: Sequence[RunFolder], names: Sequence[str], files: Sequence[ImageFile]) -> list[Section]:
    """Of a page about `runs`, which it calls `names`; `files`: images in place of the first validation images."""
    events = [EventAccumulator(str(run.folder), SIZES).Reload() for run in runs]
    told = [facts(runs, names), settings(runs, names), metrics(runs, names)]
    shown = [*pictures(runs, names, files), curves(events, names), usage(events, names)]
    return [section for section in [*told, *shown] if section.images or (section.table and section.table.rows)]


def facts(runs: Sequence[RunFolder], names: Sequence[str]) -> Section:
    rows: list[list[Any]] = []
    for run, name in zip(runs, names, strict=True):
        record = run.record or {}
        made_on = record.get("environment", {})
        words = [show(record.get(key)) for key in FACTS] + [made_on.get("commit", "")[:9]]
        rows.append([name, run.name, run.state, *words])
    heads = ["", "folder", "state", *FACTS.values(), "commit"]
    return Section("Runs", table=Table(heads, rows, row_heads=4))


def settings(runs: Sequence[RunFolder], names: Sequence[str]) -> Section:
    rows: list[list[Any]] = [[key, *map(show, values)] for key, values in differing(runs).items()]
    text = ["Keys that may change a number and differ; empty: the model has no such key."]
    return Section("Configuration", text, Table(["key", *names], rows))


def metrics(runs: Sequence[RunFolder], names: Sequence[str]) -> Section:
    """A row a metric and protocol: numbers of two protocols stand in two rows."""
    measured = sorted({name for run in runs if run.record for name in run.record["metrics"]})
    rows: list[list[Any]] = [[*key, *map(show, values)] for key, values in columns_of(runs, measured).items()]
    text = ["Numbers in one row were measured by the same protocol; others do not compare."]
    return Section("Metrics", text, Table(["metric", "protocol", *names], rows, row_heads=2))


def show(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


# ---- what the event files hold


def curves(events: Sequence[EventAccumulator], names: Sequence[str]) -> Section:
    """Scalars of which a run has two values or more, validation first."""
    lines: dict[str, dict[str, tuple[list[int], list[float]]]] = {}
    for name, one in zip(names, events, strict=True):
        for tag in one.Tags()["scalars"]:
            found = one.Scalars(tag)
            points = [event.step for event in found], [event.value for event in found]
            lines.setdefault(tag, {})[name] = points
    tags = sorted(lines, key=lambda tag: (not tag.startswith("val/"), not tag.startswith("train/"), tag))
    made = []
    for tag in tags:
        if max(len(steps) for steps, _ in lines[tag].values()) > 1:
            axes = (figure := Figure((3.6, 2.3), layout="constrained")).subplots()
            for number, name in enumerate(names):
                steps, values = lines[tag].get(name, ([], []))
                axes.plot(steps, values, "." if len(steps) == 1 else "-", color=f"C{number}", label=name, lw=1.2)
            axes.set_title(tag, fontsize=10)
            axes.set_xlabel("step", fontsize=8)
            axes.tick_params(labelsize=8)
            axes.grid(alpha=0.3)
            axes.legend(fontsize=7)
            made.append(drawn(figure))
    return Section("Curves", images=made)


def usage(events: Sequence[EventAccumulator], names: Sequence[str]) -> Section:
    """How often each code was picked in the last validation."""
    made = []
    for number, (name, one) in enumerate(zip(names, events, strict=True)):
        if CODE_USES in one.Tags()["histograms"]:
            bins = one.Histograms(CODE_USES)[-1].histogram_value
            axes = (figure := Figure((3.6, 2.3), layout="constrained")).subplots()
            edges = [bins.min, *bins.bucket_limit[:-1], bins.max]
            axes.stairs(bins.bucket, sorted(edges), fill=True, color=f"C{number}")
            axes.set_xlabel("log10(1 + uses of a code)", fontsize=8)
            axes.set_ylabel("codes", fontsize=8)
            axes.set_title(name, fontsize=10)
            axes.tick_params(labelsize=8)
            made.append(drawn(figure))
    return Section("Use of the codes in validation", images=made)


# ---- images


def pictures(runs: Sequence[RunFolder], names: Sequence[str], files: Sequence[ImageFile]) -> list[Section]:
    """Reconstructions of the same images by the tokenizers among the runs, samples of the same seed by the priors."""
    columns: dict[str, list[Image]] = {}
    samples: dict[str, list[Image]] = {}
    originals: list[Tensor] = []
    for run, name in zip(runs, names, strict=True):
        config = run.experiment.model
        if not any((run.folder / "checkpoints").glob("*.ckpt")):
            continue
        if config.generates:
            images = Prior.from_pretrained(run.folder).sample(list(range(NUM_IMAGES)), seed=0)[0]
            samples[name] = [pixels(image) for image in to_uint8(images)]
        elif config is run.experiment.tokenizer:
            tokenizer = Tokenizer.from_pretrained(run.folder)
            images = shown_to(run, tokenizer.image_size, files)
            made = torch.cat([tokenizer.reconstruct(image[None]) for image in images])
            psnr = per_image_psnr(to_unit(made), to_unit(images)).tolist()
            if not any(torch.equal(images, other) for other in originals):
                head = f"original, for {name}" if originals else "original"
                columns[head] = [pixels(image) for image in to_uint8(images)]
                originals.append(images)
            columns[name] = [pixels(one, f"{dB:.2f} dB") for one, dB in zip(to_uint8(made), psnr, strict=True)]
    return [
        Section("The same images", ["Below each its PSNR."], side_by_side(columns)),
        Section("Samples of seed 0, classes in turn", table=side_by_side(samples)),
    ]


@torch.no_grad()
def shown_to(run: RunFolder, size: int, files: Sequence[ImageFile]) -> Tensor:
    """(N, 3, S, S) in [-1, 1]."""
    if files:
        return to_unit_range(torch.stack([read_framed(file, size, "crop").pixels for file in files]))
    return first_images(build_data(plain(run.experiment)), NUM_IMAGES)


def side_by_side(columns: dict[str, list[Image]]) -> Table | None:
    if not columns:
        return None
    rows: list[list[Any]] = [list(row) for row in zip(*columns.values(), strict=False)]
    return Table(list(columns), rows, row_heads=0)


def letters(runs: Sequence[RunFolder]) -> list[str]:
    """Short names: A, B, ...; of more than 26 runs numbers."""
    return [chr(65 + number) if len(runs) <= 26 else str(number + 1) for number in range(len(runs))]


def page_title(runs: Sequence[RunFolder]) -> str:
    return f"{len(runs)} runs of {', '.join(sorted({run.folder.absolute().parent.parent.name for run in runs}))}"
