"""Trains one experiment and writes its result record.

    python -m experiments.train experiments/vqgan_lc_cifar10.yaml model.codebook_size=16384 trainer.max_steps=500

Keys are those of the YAML files, such as data.batch_size=32 trainer.precision=bf16-mixed runtime.devices=8. The same
command continues a run that was stopped.
"""

from pathlib import Path

from experiments.config.compose import load_experiment
from experiments.pipeline.build import resolve_data
from experiments.pipeline.training import train
from experiments.pipeline.upstream import run_dir
from experiments.runtime import arguments
from experiments.runtime.errors import is_main, user_errors
from experiments.runtime.ranks import from_main, join, main_first
from experiments.runtime.signals import follow_parent
from experiments.runtime.trainer import quiet


def main() -> None:
    parser = arguments.of_recipe("train", __doc__)
    arguments.add_data(parser)
    parser.add_argument("--run-dir", help="default: OUTPUT_DIR/experiments/NAME_kK_sSEED_DIGEST")
    given = parser.parse_intermixed_args()
    with user_errors():
        follow_parent()
        experiment = load_experiment(given.file, given.overrides)
        quiet()
        join(experiment)
        with main_first():  # may download
            experiment = resolve_data(experiment, given.data)
        experiment = from_main(experiment)
        name = Path(given.file).stem
        folder = Path(given.run_dir) if given.run_dir else run_dir(experiment, name)
        record = train(experiment, name, folder, waits=False)
        if is_main():
            print(f"finished: {folder}")
            for metric, value in sorted(record["metrics"].items()):
                print(f"  {metric:22} {value:12.4f}   {record['protocols'].get(metric, '')}")


if __name__ == "__main__":
    main()
