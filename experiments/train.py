"""Trains one experiment and writes its result record.

python -m experiments.train experiments/vqgan_lc_cifar10.yaml model.codebook_size=16384 trainer.max_steps=500
"""

import argparse
from pathlib import Path

from experiments.config.compose import load_experiment
from experiments.pipeline.build import resolve_data
from experiments.pipeline.training import train
from experiments.pipeline.upstream import run_dir
from experiments.runtime.errors import user_errors
from experiments.runtime.ranks import from_main, is_main, join, main_first
from experiments.runtime.signals import follow_parent
from experiments.runtime.trainer import quiet


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.train",
        description="Train one experiment on the machine at hand and write its result record.",
        epilog="Keys are those of the YAML files, for example model.codebook_size=16384 data.batch_size=32 "
        "trainer.precision=bf16-mixed runtime.devices=8. The same command continues a run that was stopped.",
    )
    parser.add_argument("file", help="recipe, for example experiments/vqgan_lc_cifar10.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the recipe")
    parser.add_argument("--data", default="auto", help="auto | cifar10 | shapes | image_folder (default: auto)")
    parser.add_argument("--run-dir", help="default: OUTPUT_DIR/experiments/NAME_kK_sSEED_DIGEST")
    arguments = parser.parse_intermixed_args()  # options may stand between keys
    with user_errors():
        follow_parent()
        experiment = load_experiment(arguments.file, arguments.overrides)
        quiet()
        join(experiment)
        with main_first():  # may download
            experiment = resolve_data(experiment, arguments.data)
        experiment = from_main(experiment)
        name = Path(arguments.file).stem
        folder = Path(arguments.run_dir) if arguments.run_dir else run_dir(experiment, name)
        record = train(experiment, name, folder, waits=False)
        if is_main():
            print(f"finished: {folder}")
            for metric, value in sorted(record["metrics"].items()):
                print(f"  {metric:22} {value:12.4f}   {record['protocols'].get(metric, '')}")


if __name__ == "__main__":
    main()
