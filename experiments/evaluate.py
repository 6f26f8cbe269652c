"""Measures a trained checkpoint again, by the same code as training's validation.

    python -m experiments.evaluate runs/experiments/RUN/checkpoints/final.ckpt --data-dir DATA [key=value ...]

Keys may change the data (data.val_size=1000), the metrics (model.metrics.extractor=...) or where it runs
(runtime.accelerator=cpu); for what generates also how (model.sampling.guidance_scale=2,
model.generation.num_samples=1000).
"""

import json
from dataclasses import replace

from experiments.pipeline.build import resolve_data
from experiments.pipeline.training import measure
from experiments.pipeline.upstream import restore_for
from experiments.runtime import arguments
from experiments.runtime.errors import user_errors
from experiments.runtime.ranks import check_accelerator
from experiments.runtime.trainer import quiet


def main() -> None:
    parser = arguments.of_checkpoint("evaluate", __doc__)
    arguments.add_data(parser)
    parser.add_argument("--tokenizer", help="the tokenizer's checkpoint (default: that of its upstream run)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    given = parser.parse_intermixed_args()
    with user_errors():
        quiet()
        experiment, module = restore_for(given)
        check_accelerator(experiment.runtime)
        # the data of what it stands on is not needed any more
        resolved = replace(resolve_data(experiment, given.data), upstream=experiment.upstream)
        metrics, data_id = measure(resolved, module, given.tokenizer)
        protocols = module.protocols()
        if given.json:
            print(json.dumps({"data_id": data_id, "metrics": metrics, "protocols": protocols}))
            return
        print(f"{given.checkpoint}  ({data_id})")
        for name, value in sorted(metrics.items()):
            print(f"  {name:22} {value:12.4f}   {protocols.get(name, '')}")


if __name__ == "__main__":
    main()
