"""Draws the same images beside their reconstructions by the trained tokenizers of a sweep; never trains.

python -m sweeps.reconstructions sweeps/ablation_codebook.yaml --scale cifar

The first images of the validation set, nothing selected. A tokenizer comes from its run's final checkpoint or from the
weights that `sweeps.run --keep-weights` leaves in OUTPUT_DIR/weights; its numbers, mean over seeds, from the records.
"""

import sys
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from experiments.pipeline.build import data_module, restore_tokenizer
from experiments.pipeline.inputs import inputs_of
from experiments.pipeline.upstream import run_dir
from experiments.pipeline.weights import restore_weights, weights_path
from experiments.runtime.errors import user_errors
from experiments.runtime.records import data_name
from sweeps.arguments import parser_of
from sweeps.grid import Row, Run, Table, label_of, load_grid
from sweeps.heads import printed_label
from sweeps.measure import Finished, head_of, measure
from sweeps.render import replace_file
from sweeps.tables import with_finished_seeds
from sweeps.workers import data_resolver

NUM_IMAGES = 8
METRICS = ("rfid", "usage/val", "codes/epoch")  # under each name, of the table's columns
ROWS = ("*K=100,000", "none, narrow*")


def tokenizer_of(run: Run) -> torch.nn.Module | None:
    """The trained tokenizer; None where neither a checkpoint nor weights are."""
    experiment = run.experiment
    inputs = inputs_of(experiment)
    checkpoint = run_dir(experiment, run.name) / "checkpoints" / "final.ckpt"
    if checkpoint.is_file():
        return restore_tokenizer(checkpoint)[1]
    path = weights_path(experiment, inputs.data_id)
    return restore_weights(path, experiment, inputs)[0] if path.is_file() else None


@torch.no_grad()
def reconstructed(tokenizer: torch.nn.Module, images: Tensor) -> Tensor:
    """(B, 3, H, W) in [0, 1] of images in [-1, 1]."""
    return (tokenizer.eval()(images).reconstruction.float().clamp(-1, 1) + 1) / 2


def first_images(run: Run) -> Tensor:
    """(B, 3, H, W) in [-1, 1], the first of the validation set."""
    images = data_module(run.experiment)
    images.prepare_data()
    images.setup("validate")
    return next(iter(images.ordered_val_dataloader()))["image"][:NUM_IMAGES].float()


def numbers_of(table: Table, row: Row, finished: Finished) -> str:
    """ "rFD (Lite2) 312 ± 4, val util % 97.1 ± 0.2"."""
    texts = []
    for metric in METRICS:
        for column in (column for column in table.spec.columns if column.metric == metric):
            if measured := measure(column, row, finished):
                head = head_of(column.head, min(measured.protocols, default=""))
                texts.append(f"{head} {measured.text(column.format)}")
    return "\n".join(texts)


def draw(strips: Sequence[tuple[str, str, Tensor]], title: str) -> Figure:
    """A row of images for each (name, numbers, images), beside its name."""
    count = len(strips[0][2])
    figure = Figure((2.2 + count * 0.8, 0.3 + 0.84 * len(strips)))
    left, top = 2.2 / figure.get_figwidth(), 1 - 0.3 / figure.get_figheight()
    height = top / len(strips)
    for number, (name, numbers, images) in enumerate(strips):
        bottom = top - (number + 1) * height
        axes = figure.add_axes((left, bottom, 1 - left, 0.96 * height))
        row = torch.cat(list(torch.nn.functional.pad(images, (1, 1, 0, 0), value=1.0)), dim=-1)  # (3, H, B (W + 2))
        axes.imshow(row.permute(1, 2, 0).numpy(), interpolation="nearest", aspect="auto")
        axes.set_axis_off()
        figure.text(0.01, bottom + 0.66 * height, name, size=9, weight="bold", va="center")
        figure.text(0.01, bottom + 0.54 * height, numbers, size=7.5, color="#444444", va="top", linespacing=1.3)
    figure.text(0.01, 1 - 0.15 / figure.get_figheight(), title, size=8, va="center", color="#444444")
    return figure


def strips_of(
    table: Table, patterns: Sequence[str], finished: Finished, scale: str, data: str
) -> list[tuple[str, str, Tensor]]:
    """The originals, and each row of the table that matches and whose weights are here, of its first seed."""
    strips: list[tuple[str, str, Tensor]] = []
    for row in table.rows:
        label = label_of(row.heads)
        if not row.runs or not any(fnmatchcase(label, pattern) for pattern in patterns):
            continue
        found = ((run, tokenizer) for run in row.runs if (tokenizer := tokenizer_of(run)) is not None)
        run, tokenizer = next(found, (row.runs[0], None))
        if tokenizer is None:
            print(f"left out: {label}: neither a checkpoint nor weights are under {run.experiment.runtime.output_dir}")
            continue
        images = first_images(run)
        if not strips:
            strips.append(("original", "", (images + 1) / 2))
        name = printed_label(scale, row, finished, data)
        strips.append((name, numbers_of(table, row, finished), reconstructed(tokenizer, images)))
    return strips


def main(arguments: list[str] | None = None) -> int:
    parser = parser_of(
        "reconstructions",
        "sweep, for example sweeps/ablation_codebook.yaml",
        description="Draw images beside their reconstructions by a sweep's trained tokenizers. Trains nothing.",
    )
    parser.add_argument(
        "--row", action="append", default=[], help="of which rows, as '*K=100,000' (may be given again)"
    )
    parser.add_argument("--out", help="folder of the picture (default: OUTPUT_DIR/tables)")
    options = parser.parse_intermixed_args(arguments)
    with user_errors():
        grid = load_grid(options.file, options.scale, options.seeds, options.overrides)
        grid = grid.prepared(data_resolver(options.data, options.data_dir, options.output_dir))
        output_dir = Path(options.output_dir)
        grid, by_data = with_finished_seeds(grid, output_dir)
        table = grid.tables[0]
        data = max(by_data, key=lambda name: len(by_data[name]), default="")
        strips = strips_of(table, options.row or ROWS, by_data.get(data, {}), grid.scale, data)
        if not strips:
            raise ValueError(f"{options.file}: no trained tokenizer of scale {options.scale} is under {output_dir}")
        name = data_name(inputs_of(grid.runs[0].experiment).data_id)
        out = Path(options.out) if options.out else output_dir / "tables"
        path = out / f"{grid.name}_{table.spec.id}_reconstructions_{grid.scale}_{name}.png"
        title = (
            f"{name}, scale {grid.scale}: the first {NUM_IMAGES} validation images, one seed; numbers over all seeds"
        )
        if options.dry_run:
            print(f"would be written: {path}, of {', '.join(name for name, *_ in strips)}")
            return 0
        replace_file(path, draw(strips, title))
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
