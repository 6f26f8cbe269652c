"""Measures a trained checkpoint again, by the same code as training's validation; or any two folders of images.

    python -m experiments.evaluate runs/experiments/RUN/checkpoints/final.ckpt --data-dir DATA [key=value ...]

Keys may change the data (data.val_size=1000), the metrics (model.metrics.extractor=...) or where it runs
(runtime.accelerator=cpu); for what generates also how (model.sampling.guidance_scale=2,
model.generation.num_samples=1000).

    python -m experiments.evaluate --images theirs/ --reference imagenet/val [model.metrics.extractor=dinov2-vit-l-14]

judges images that anyone made: FID, IS, KID, precision and recall, under the protocol ids of our own models. Where the
file names of both sides are the same, endings aside, each image is taken for the reconstruction of its namesake, and
PSNR, SSIM and LPIPS are measured, too.
"""

import argparse
import json
from typing import Any

from experiments.runtime import arguments
from experiments.runtime.errors import user_errors

METRICS = "model.metrics"
OF_CHECKPOINT = ("print_config", "data", "data_dir", "output_dir", "tokenizer")  # options without --images
OF_IMAGES = ("reference_name", "image_size", "unpaired", "batch_size")
OF_FOLDERS = (f"{METRICS}.extractor", f"{METRICS}.extractor_image_size", f"{METRICS}.lpips", "runtime.accelerator")


def main() -> None:
    parser = arguments.of_checkpoint("evaluate", __doc__, optional=True)
    arguments.add_data(parser)
    parser.add_argument("--tokenizer", help="the tokenizer's checkpoint (default: that of its upstream run)")
    arguments.add_dry_run(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    parser.add_argument("--images", metavar="FOLDER", help="images to judge, instead of a model")
    parser.add_argument("--reference", metavar="FOLDER", help="images to compare them with")
    parser.add_argument("--reference-name", help="in protocol ids, such as val (default: the folder's name)")
    parser.add_argument("--image-size", type=int, default=0, help="side to which both are brought (default: as it is)")
    parser.add_argument("--unpaired", action="store_true", help="equal file names mean nothing")
    parser.add_argument("--batch-size", type=int, default=64, help="of --images")
    given = parser.parse_intermixed_args()
    if given.images and given.checkpoint and "=" in given.checkpoint:  # without CHECKPOINT the first key comes there
        given.checkpoint, given.overrides = None, [given.checkpoint, *given.overrides]
    if bool(given.images) != bool(given.reference) or bool(given.images) == bool(given.checkpoint):
        parser.error("name a checkpoint, or images with --images and --reference")
    kind, ignored = ("images", OF_CHECKPOINT) if given.images else ("a checkpoint", OF_IMAGES)
    for option in ignored:
        if (value := getattr(given, option)) != parser.get_default(option):
            parser.error(f"--{option.replace('_', '-')} {value}: has no meaning for {kind}")
    with user_errors():
        if given.print_config:
            from experiments.config.compose import as_yaml
            from experiments.pipeline.upstream import restore_for

            print(as_yaml(restore_for(given)[0]), end="")
            return
        title, result = of_folders(given) if given.images else of_model(given)
        if given.dry_run:
            print(title)
            return
        if given.json:
            print(json.dumps(result))
            return
        print(title)
        for name, value in sorted(result["metrics"].items()):
            print(f"  {name:22} {value:12.4f}   {result['protocols'].get(name, '')}")


def of_model(given: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """A line, and what --json prints."""
    from dataclasses import replace

    from experiments.pipeline.build import resolve_data
    from experiments.pipeline.evaluation import measure
    from experiments.pipeline.inputs import Seen, images_of
    from experiments.pipeline.upstream import restore_for
    from experiments.runtime.ranks import check_accelerator
    from experiments.runtime.trainer import quiet

    quiet()
    experiment, module = restore_for(given)
    check_accelerator(experiment.runtime)
    # the data of what it stands on is not needed any more
    resolved = replace(resolve_data(experiment, given.data), upstream=experiment.upstream)
    if given.dry_run:
        return f"{given.checkpoint}  would be measured on {images_of(resolved, Seen()).data_id}", {}
    metrics, data_id = measure(resolved, module, given.tokenizer)
    result = {"data_id": data_id, "metrics": metrics, "protocols": module.protocols()}
    return f"{given.checkpoint}  ({data_id})", result


def of_folders(given: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """The same of --images and --reference."""
    from pathlib import Path

    import lightning as L

    from datamodules.files import image_files
    from experiments.config.compose import compose, parse
    from experiments.config.values import flatten, from_dotlist
    from experiments.pipeline.folder_metrics import common_side, compare, partners, require_enough
    from experiments.runtime.ranks import check_accelerator
    from lightning_modules.checks import require

    overrides = from_dotlist(given.overrides)
    other = flatten(overrides).keys() - {*OF_FOLDERS}
    require(not other, f"{min(other, default='')}: with --images only {', '.join(OF_FOLDERS)} can be given")
    sizes_fit = given.batch_size >= 1 and given.image_size >= 0
    require(sizes_fit, f"--batch-size {given.batch_size}, --image-size {given.image_size}: must be at least 1")
    experiment = parse(compose({"model": {"name": "vqgan"}}, overrides), "evaluate")
    images, reference = image_files([given.images]), image_files([given.reference])
    name = given.reference_name or Path(given.reference).expanduser().resolve().name
    check_accelerator(experiment.runtime)
    device = L.Fabric(accelerator=experiment.runtime.accelerator, devices=1).device
    require_enough(images, reference)
    side = given.image_size or common_side([*images, *reference])
    title = f"{len(images)} images, {len(reference)} of {name}, {side} pixels"
    title += f"; names in common: {partners(images, reference)[1]}"
    if given.dry_run:
        return title, {}
    options = (side, given.batch_size, not given.unpaired)
    return title, compare(images, reference, name, experiment.tokenizer.metrics, device, *options)


if __name__ == "__main__":
    main()
