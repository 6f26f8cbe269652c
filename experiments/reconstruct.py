"""Reconstructs images of any size with a trained tokenizer, and measures what is lost.

    python -m experiments.reconstruct runs/experiments/RUN photo.jpg folder/ --out reconstructions

MODEL is a run's folder, a checkpoint, an exported folder or a hub id; PATHS are files, and folders with all that is
below them. OUT then holds

    pairs/NAME.png    original | reconstruction | absolute error
    sheet.png         the same of the first 32 images
    images.npz        originals, reconstructions (N, S, S, 3) uint8; indices (N, h, w) int32; names (N,)
    metrics.csv       PSNR, SSIM, L1, L2 and, where its weights are on disk, LPIPS of each file
    summary.json      their means with protocol ids, and how the images were brought to the model's size

--fit crop resizes the shorter side and keeps the middle, as in validation. --fit pad keeps the whole image: the longer
side is resized, the border repeated, and the metrics are of the image without it.
"""

from pathlib import Path

from experiments.runtime import arguments
from experiments.runtime.errors import user_errors


def main() -> None:
    parser = arguments.of_model("reconstruct", __doc__)
    arguments.add_dry_run(parser)
    parser.add_argument("paths", nargs="+", metavar="PATHS", help="image files and folders")
    parser.add_argument(
        "--fit", choices=arguments.FITS, default="crop", help="how an image becomes a square (default: crop)"
    )
    parser.add_argument("--out", default="reconstructions", help="folder to write (default: reconstructions)")
    parser.add_argument("--lpips", choices=("auto", "alex", "vgg", "none"), default="auto", help="its network")
    given = parser.parse_args()
    from datamodules.files import image_files
    from experiments.config.compose import as_yaml
    from experiments.pipeline.build import experiment_of
    from experiments.pipeline.own_images import reconstruct, require_all, tokenizer_for
    from experiments.runtime.files import require_empty
    from lightning_modules.checks import require

    with user_errors():
        if given.print_config:
            print(as_yaml(experiment_of(given.model)), end="")
            return
        require(given.batch_size >= 1, f"--batch-size {given.batch_size}: must be at least 1")
        files, out = image_files(given.paths), Path(given.out).expanduser()
        require_empty(out)
        tokenizer = tokenizer_for(given.model, given.accelerator)
        if given.dry_run:
            print(f"{out}: {len(files)} images at {tokenizer.image_size} pixels ({given.fit})")
            return
        summary = reconstruct(tokenizer, files, out, given.fit, given.batch_size, given.lpips)
        print(f"{out}: {summary['images']} images at {summary['image_size']} pixels ({summary['fit']})")
        for name, value in summary["metrics"].items():
            print(f"  {name:22} {value:12.4f}   {summary['protocols'][name]}")
        require_all(summary["left_out"], len(files), out)


if __name__ == "__main__":
    main()
