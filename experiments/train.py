"""Trains one experiment and writes its result record.

    python -m experiments.train experiments/vqgan_lc_cifar10.yaml model.codebook_size=16384 trainer.max_steps=500

Keys are those of the YAML files, such as data.batch_size=32 trainer.precision=bf16-mixed runtime.devices=8. The same
command continues a run that was stopped; so does the file RUN/config.yaml, which says what a run is.

    python -m experiments.train my_photos.yaml --from runs/imported/vqgan.ckpt --parts encoder,decoder
    python -m experiments.train --from runs/experiments/RUN trainer.max_steps=2000

begin with the weights of a run, a checkpoint (also an imported one) or an exported folder, in a run of its own, whose
record names them (start_from). Without FILE the configuration is that of the checkpoint, and keys change it. Optimizer
states are not taken, and the schedule, the warm-up and the game begin anew.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.runtime import arguments
from experiments.runtime.errors import is_main, user_errors
from experiments.runtime.signals import follow_parent

if TYPE_CHECKING:
    from experiments.config.experiment import Experiment


def experiment_of(given: argparse.Namespace) -> "Experiment":
    """The recipe's experiment, or that of the model to begin with. Raises ValueError."""
    from experiments.config.compose import compose, load_experiment, parse
    from experiments.config.values import from_dotlist
    from experiments.pipeline.starting import starting_from
    from lightning_modules.checks import require
    from lightning_modules.pretrained import load_checkpoint

    if given.file:
        experiment = load_experiment(given.file, given.overrides)
    else:
        values = {
            key: value
            for key, value in load_checkpoint(given.start)["experiment"].items()
            if key not in ("start_from", "plugins")
        }
        experiment = parse(compose(values, from_dotlist(given.overrides)), given.start)
    start = experiment.start_from
    if given.start:
        return starting_from(experiment, given.start, given.parts)
    require(not given.parts, f"--parts {given.parts}: of which model? Name it with --from")
    return experiment if start.weights or not start.path else starting_from(experiment, start.path, start.parts)


def main() -> None:
    parser = arguments.of_recipe("train", __doc__, optional=True)
    arguments.add_data(parser)
    arguments.add_dry_run(parser)
    parser.add_argument("--data-dir", help="folder of the images: runtime.data_dir")
    parser.add_argument("--run-dir", help="default: OUTPUT_DIR/experiments/NAME_kK_dD_sSEED_DIGEST")
    parser.add_argument("--from", dest="start", metavar="MODEL", help="begin with its weights, not with random ones")
    parser.add_argument("--parts", default="", help="of --from: the networks to take, encoder,decoder (default: all)")
    given = parser.parse_intermixed_args()
    from experiments.config.compose import as_yaml
    from experiments.pipeline.build import resolve_data
    from experiments.pipeline.training import plan, train
    from experiments.pipeline.upstream import run_dir
    from experiments.runtime.ranks import from_main, join, main_first
    from experiments.runtime.trainer import quiet

    if given.file and "=" in given.file:  # without FILE the first key comes there
        given.file, given.overrides = None, [given.file, *given.overrides]
    given.overrides += [f"runtime.data_dir={given.data_dir}"] if given.data_dir else []
    if not (given.file or given.start):
        parser.error("name a recipe, or with --from a model whose configuration to take")
    with user_errors():
        follow_parent()
        experiment = experiment_of(given)
        name = experiment.name or (Path(given.file).stem if given.file else experiment.model.name)
        if given.print_config:
            resolved = experiment if given.data == "auto" else resolve_data(experiment, given.data)
            print(as_yaml(resolved, name), end="")
            return
        quiet()
        join(experiment)
        with main_first():  # may download
            experiment = resolve_data(experiment, given.data)
        experiment = from_main(experiment)
        folder = Path(given.run_dir) if given.run_dir else run_dir(experiment, name)
        if given.dry_run:
            print("\n".join(plan(experiment, folder)))
            return
        record = train(experiment, name, folder, waits=False)
        if is_main():
            print(f"finished: {folder}")
            for metric, value in sorted(record["metrics"].items()):
                print(f"  {metric:22} {value:12.4f}   {record['protocols'].get(metric, '')}")


if __name__ == "__main__":
    main()
