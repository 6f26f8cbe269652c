"""Measures a trained checkpoint again, by the same code as training's validation.

python -m experiments.evaluate runs/experiments/RUN/checkpoints/final.ckpt --data-dir DATA [key=value ...]
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

from experiments.pipeline.build import resolve_data
from experiments.pipeline.prepare import prepare_evaluation
from experiments.pipeline.training import evaluate
from experiments.pipeline.upstream import restore_for
from experiments.runtime.errors import user_errors
from experiments.runtime.ranks import check_accelerator, silent_trainer


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.evaluate",
        description="Validation metrics of a checkpoint, each with its protocol id.",
        epilog="Keys may change the data (data.val_size=1000), the metrics (model.metrics.extractor=...) or where it "
        "runs (runtime.accelerator=cpu); for a VIM also how it samples (model.sampling.temperature=0.9, "
        "model.generation.num_samples=1000).",
    )
    parser.add_argument("checkpoint", help="a final.ckpt or last.ckpt of a run")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--data", default="auto", help="auto | cifar10 | shapes | image_folder (default: auto)")
    parser.add_argument("--data-dir", default="data", help="folder of the data (default: data)")
    parser.add_argument("--output-dir", help="keeps reference features and upstream runs (default: the run's own)")
    parser.add_argument("--tokenizer", help="checkpoint of a VIM's tokenizer (default: that of its upstream run)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    arguments = parser.parse_intermixed_args()  # options may stand between keys
    with user_errors():
        experiment, module = restore_for(arguments)
        check_accelerator(experiment.runtime)
        upstream = experiment.upstream  # whose data is a matter of the past
        resolved = replace(resolve_data(experiment, arguments.data), upstream=upstream)
        module, data, images = prepare_evaluation(resolved, module, arguments.tokenizer)
        trainer = silent_trainer(
            accelerator=experiment.runtime.accelerator, devices=1, precision=experiment.trainer.precision
        )
        metrics = evaluate(trainer, module, data, images, Path(experiment.runtime.output_dir))
        protocols = module.protocols()
        if arguments.json:
            print(json.dumps({"data_id": images.data_id, "metrics": metrics, "protocols": protocols}))
            return
        print(f"{arguments.checkpoint}  ({images.data_id})")
        for name, value in sorted(metrics.items()):
            print(f"  {name:22} {value:12.4f}   {protocols.get(name, '')}")


if __name__ == "__main__":
    main()
