"""Measures every tokenizer in a folder by one protocol, and makes one table of them.

    python -m experiments.leaderboard CHECKPOINTS --data-dir IMAGENET [key=value ...]

CHECKPOINTS holds, at any depth, public checkpoints (.ckpt, .pt, .pth, .bin, .safetensors of the families that
experiments.import_checkpoint knows), checkpoints and folders of runs, and exported folders. A public file is of the
family that its keys tell, or that a folder above it is named after: CHECKPOINTS/ibq/FILE.

All see the same images, in float32, with the same metrics. What has been measured is not measured again; what cannot be
read is named, with the reason, and the others go on. The table is printed and written to
OUTPUT_DIR/leaderboard/DATA.md. Keys: data.*, model.metrics.*, runtime.*.
"""

from pathlib import Path

from experiments.runtime import arguments
from experiments.runtime.errors import user_errors

KEYS = ("data.", "model.metrics.", "runtime.")


def main() -> None:
    parser = arguments.parser("leaderboard", __doc__, checkpoints="folder of checkpoints, runs and exported folders")
    parser.add_argument("--data", default="auto", help="auto: CIFAR-10 if it is there, else a folder")
    parser.add_argument("--data-dir", default="data", help="folder of the images (default: data)")
    parser.add_argument("--output-dir", default="runs", help="where records and table go (default: runs)")
    arguments.add_dry_run(parser)
    parser.add_argument("--image-size", type=int, help="pixels of public models that do not tell theirs (default: 256)")
    given = parser.parse_intermixed_args()
    from omegaconf import OmegaConf

    from datamodules import DATAMODULES
    from datamodules.cifar10 import find_cifar10
    from experiments.config.values import flatten, from_dotlist, merge, select
    from experiments.importers import Options
    from experiments.pipeline.leaderboard import measure_all, page
    from experiments.runtime.files import replacing, require_writable
    from experiments.runtime.trainer import quiet
    from lightning_modules.checks import hint, home_expanded, require

    with user_errors():
        quiet()
        words = ("auto", *DATAMODULES)
        require(given.data in words, f"--data {given.data}: none of {', '.join(words)}{hint(given.data, words)}")
        overrides = from_dotlist(given.overrides)
        for key in flatten(overrides):
            require(key.startswith(KEYS), f"{key}: the models are as they are; keys may begin with {', '.join(KEYS)}")
            require(key != "data.image_size", f"{key}: is each model's own; --image-size is that of public ones")
        where = {"data_dir": given.data_dir, "output_dir": given.output_dir} | (select(overrides, "runtime") or {})
        found = "image_folder" if find_cifar10(where["data_dir"]) is None else "cifar10"
        data = {"name": found if given.data == "auto" else given.data}
        settings = merge({"data": data, "runtime": where}, overrides)
        if given.print_config:
            print(OmegaConf.to_yaml(settings), end="")
            return
        out = Path(home_expanded(where["output_dir"])) / "leaderboard"
        if not given.dry_run:
            require_writable(out)
        size = given.image_size
        require(size is None or size >= 1, f"--image-size {size} must be at least 1")
        folder, dry_run = Path(given.checkpoints), given.dry_run
        rows, failures, data_id = measure_all(folder, Options(size), settings, out, dry_run)
        if dry_run:
            return
        text = page(rows, failures, data_id)
        with replacing(out / f"{data_id}.md") as file:
            file.write(text.encode())
        print(f"\n{text}\n{out / data_id}.md")
        require(bool(rows), f"{given.checkpoints}: nothing could be measured")


if __name__ == "__main__":
    main()
