"""Builds the frozen table of VQGAN-LC: features of a pretrained encoder, selected at random or clustered.

    python -m experiments.build_codebook experiments/vqgan_lc_cifar10.yaml model.codebook_size=16384

Paper B, section 3.2: patch features of the training images, pooled, k-means into K centres. The paper's text clusters
all of them at once (source.per_class=false), the official code each class on its own, and concatenates (the default).
Neither the images nor the features need to fit in memory; docs/codebook.md has the cost at the paper's size. Training
does all this by itself where the codebook is missing.
"""

from pathlib import Path

from experiments.runtime import arguments
from experiments.runtime.errors import user_errors


def main() -> None:
    parser = arguments.of_recipe("build_codebook", __doc__)
    arguments.add_data(parser)
    arguments.add_dry_run(parser)
    parser.add_argument("--out", help="file to write (default: OUTPUT_DIR/codebooks/NAME.safetensors)")
    parser.add_argument("--estimate", action="store_true", help="measure a small sample, print time, disk and memory")
    parser.add_argument("--images", type=int, help="with --estimate: for so many images (default: the recipe's)")
    given = parser.parse_intermixed_args()
    from experiments.config.compose import as_yaml, load_experiment
    from experiments.pipeline.build import build_data, resolve_data
    from experiments.pipeline.codebooks.build import build_codebook, codebook_path, with_source_data
    from experiments.pipeline.codebooks.estimate import estimate
    from experiments.pipeline.codebooks.extraction import large_codebook

    with user_errors():
        if given.images is not None and not (given.estimate and given.images >= 1):
            raise ValueError(f"--images {given.images}: a positive number, and only with --estimate")
        experiment = load_experiment(given.file, given.overrides)
        if given.print_config:
            print(as_yaml(experiment), end="")
            return
        experiment = resolve_data(experiment, given.data)
        if given.estimate:
            print(estimate(experiment, given.images))
            return
        if large_codebook(experiment).source.method == "normal":
            raise ValueError("model.quantizer.source.method=normal: random numbers need no codebook file")
        experiment, data_id = with_source_data(experiment, build_data(experiment).data_id)
        path = Path(given.out or codebook_path(experiment, data_id))
        if given.dry_run:
            config = large_codebook(experiment)
            shape = f"{experiment.tokenizer.codebook_size:,} x {config.feature_dim}"
            print(f"{path}: {'is there' if path.is_file() else 'to be built'}, {shape} by {config.source.method}")
            return
        build_codebook(experiment, data_id, path)
        print(path)


if __name__ == "__main__":
    main()
