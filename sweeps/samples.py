"""Draws images that the trained models of a sweep generate, one strip a model; never trains.

python -m sweeps.samples sweeps/vit_vqgan/table6.yaml --scale reduced

Images 0, 1, ... of seed 0, classes in turn, with the recipe's sampling: nothing is selected. Tables are made
of records, which hold no weights, so this needs the runs themselves under the output folder. Rows whose run is not
there, such as those of published records, are named; `sweeps.run --no-published` trains them. Each recipe (LDM, SiT,
...) has a picture of its own where a sweep has several.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from experiments.pipeline.build import restore
from experiments.pipeline.inputs import inputs_of
from experiments.pipeline.prepare import lend
from experiments.pipeline.upstream import run_dir
from experiments.runtime.errors import user_errors
from experiments.runtime.ranks import device_of
from experiments.runtime.records import PUBLISHED, data_name, record_path
from lightning_modules.figures import sample_grid
from sweeps.arguments import parser_of
from sweeps.grid import Run
from sweeps.heads import printed_label
from sweeps.render import replace_file
from sweeps.workers import grids_of

NUM_IMAGES = 20  # of each model


def checkpoint_of(run: Run) -> Path:
    return run_dir(run.experiment, run.name) / "checkpoints" / "final.ckpt"


def sampled(run: Run) -> Tensor:
    """(3, height, width) in [0, 1]."""
    restored, module = restore(checkpoint_of(run), {"runtime": vars(run.experiment.runtime)})
    lend(restored, module)
    module.to(device_of(restored.runtime)).eval()
    with torch.no_grad():
        return sample_grid(module, NUM_IMAGES)


def why_left_out(run: Run) -> str:
    """Why there are no weights to draw with."""
    experiment = run.experiment
    data_id = inputs_of(experiment).data_id
    own = record_path(Path(experiment.runtime.output_dir) / "records", experiment, data_id)
    if own.is_file():
        return f"its record is here and its weights are not; to train it again, delete {own}"
    is_published = record_path(PUBLISHED, experiment, data_id).is_file()
    return "its record is published, without weights" if is_published else "not trained yet"


def draw(runs: Sequence[Run], labels: Mapping[str, str], title: str) -> Figure:
    """One strip of images a run, the label of its digest above it."""
    strips = [sampled(run) for run in runs]
    heights = [strip.shape[1] / strip.shape[2] for strip in strips]
    figure = Figure(figsize=(6.4, sum(6.4 * height + 0.3 for height in heights) + 0.3), layout="constrained")
    rows = figure.subplots(len(strips), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, run, strip in zip(rows, runs, strips, strict=True):
        axes.imshow(strip.permute(1, 2, 0).numpy(), interpolation="nearest")
        axes.set_title(labels[run.digest], fontsize=8)
        axes.set_axis_off()
    figure.suptitle(title, fontsize=9)
    return figure


def main(arguments: list[str] | None = None) -> int:
    parser = parser_of(
        "samples",
        "sweep, for example sweeps/vit_vqgan/table6.yaml",
        description="Draw what the trained models of a sweep generate, a strip a model, into one PNG. Trains nothing.",
    )
    options = parser.parse_intermixed_args(arguments)
    with user_errors():
        grid, *_ = grids_of(options)
        way = f"`python -m sweeps.run {options.file} --scale {options.scale} --no-published` (make: PUBLISHED=no)"
        models = [run for run in grid.runs if run.experiment.model.generates]
        trained = [run for run in models if checkpoint_of(run).is_file()]
        left_out = [run for run in models if run not in trained]
        for run in left_out:
            print(f"left out: {run.label}: {why_left_out(run)}", flush=True)
        if not trained:
            where = f"at scale {options.scale} under {options.output_dir}/experiments"
            raise ValueError(f"{options.file}: no trained prior {where}; run {way}")
        data = data_name(inputs_of(trained[0].experiment).data_id)
        recipes = list(dict.fromkeys(run.name for run in models))
        rows = [(row, run.digest) for table in grid.tables for row in table.rows for run in row.runs]
        labels = {
            digest: printed_label(grid.scale, row, {}, data) for row, digest in reversed(rows)
        }  # of the first row
        for recipe in recipes:
            runs = [run for run in trained if run.name == recipe]
            own = f"_{recipe}" if len(recipes) > 1 else ""
            path = Path(options.output_dir) / "tables" / f"{grid.name}_samples{own}_{grid.scale}_{data}.png"
            if runs and options.dry_run:
                print(f"would be written: {path}, of {', '.join(run.label for run in runs)}")
            elif runs:
                title = f"{data}, scale {grid.scale}: images 0 to {NUM_IMAGES - 1} of seed 0"
                replace_file(path, draw(runs, labels, title))
                print(path)
        if options.dry_run:
            return 0
        if left_out:
            print(f"those left out are trained by {way}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
