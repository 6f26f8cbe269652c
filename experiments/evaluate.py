"""Measures a trained checkpoint again, by the same code as training's validation.

python -m experiments.evaluate runs/experiments/RUN/checkpoints/final.ckpt --data-dir DATA [key=value ...]
"""

import argparse
import json
from pathlib import Path

import lightning as L

from experiments.build import build_data, resolve_data, restore
from experiments.config import from_dotlist, merge
from experiments.errors import user_errors
from experiments.train import evaluate


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.evaluate",
        description="Validation metrics of a checkpoint, each with its protocol id.",
        epilog="Keys may change the data (data.val_size=1000), the metrics (model.metrics.extractor=...) or where it "
        "runs (runtime.accelerator=cpu).",
    )
    parser.add_argument("checkpoint", help="a final.ckpt or last.ckpt of a run")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--data", default="auto", help="auto | cifar10 | shapes | imagefolder (default: auto)")
    parser.add_argument("--data-dir", default="data", help="folder of the data (default: data)")
    parser.add_argument("--output-dir", default="runs", help="keeps reference features (default: runs)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    arguments = parser.parse_intermixed_args()  # options may stand between keys
    with user_errors():
        where = {"runtime": {"data_dir": arguments.data_dir, "output_dir": arguments.output_dir}}
        experiment, module = restore(arguments.checkpoint, merge(where, from_dotlist(arguments.overrides)))
        experiment = resolve_data(experiment, arguments.data)
        data = build_data(experiment)
        trainer = L.Trainer(
            accelerator=experiment.runtime.accelerator,
            devices=1,
            precision=experiment.trainer.precision,  # type: ignore[arg-type]
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        metrics = evaluate(trainer, module, data, data, Path(arguments.output_dir))
        protocols = module.metrics.protocols()
        if arguments.json:
            print(json.dumps({"data_id": data.data_id, "metrics": metrics, "protocols": protocols}))
            return
        print(f"{arguments.checkpoint}  ({data.data_id})")
        for name, value in sorted(metrics.items()):
            print(f"  {name:22} {value:12.4f}   {protocols.get(name, '')}")


if __name__ == "__main__":
    main()
