"""Builds the frozen table of VQGAN-LC: features of a pretrained encoder, selected at random or clustered.

    python -m experiments.build_codebook experiments/vqgan_lc_cifar10.yaml model.codebook_size=16384

Paper B, section 3.2: patch features of the training images, pooled, k-means into K centres. The paper's text clusters
all of them at once (source.per_class=false), the official code each class on its own, and concatenates (the default).
Neither the images nor the features need to fit in memory; docs/codebook.md has the cost at the paper's size.
"""

import argparse
from pathlib import Path

from experiments.config.compose import load_experiment
from experiments.pipeline.build import build_data, resolve_data
from experiments.pipeline.codebooks.build import build_codebook, codebook_path, with_source_data
from experiments.pipeline.codebooks.estimate import estimate
from experiments.pipeline.codebooks.extraction import large_codebook
from experiments.runtime.errors import user_errors


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.build_codebook",
        description="Build the frozen codebook of a VQGAN-LC recipe; training does it by itself when it is missing.",
    )
    parser.add_argument("file", help="recipe with a large_codebook quantizer, e.g. experiments/vqgan_lc_cifar10.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. model.quantizer.source.method=random")
    parser.add_argument("--data", default="auto", help="auto | cifar10 | shapes | image_folder (default: auto)")
    parser.add_argument("--out", help="file to write (default: OUTPUT_DIR/codebooks/NAME.safetensors)")
    parser.add_argument("--estimate", action="store_true", help="measure a small sample, print time, disk and memory")
    parser.add_argument("--images", type=int, help="with --estimate: for so many images (default: the recipe's)")
    arguments = parser.parse_intermixed_args()  # options may stand between keys
    with user_errors():
        if arguments.images is not None and not (arguments.estimate and arguments.images >= 1):
            raise ValueError(f"--images {arguments.images}: a positive number, and only with --estimate")
        experiment = resolve_data(load_experiment(arguments.file, arguments.overrides), arguments.data)
        large_codebook(experiment)
        if arguments.estimate:
            print(estimate(experiment, arguments.images))
            return
        if large_codebook(experiment).source.method == "normal":
            raise ValueError("model.quantizer.source.method=normal: random numbers need no codebook file")
        experiment, data_id = with_source_data(experiment, build_data(experiment).data_id)
        path = Path(arguments.out or codebook_path(experiment, data_id))
        build_codebook(experiment, data_id, path)
        print(path)


if __name__ == "__main__":
    main()
