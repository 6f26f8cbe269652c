"""Turns a trained model into files for other programs: safetensors, torch.export or ONNX.

    python -m experiments.export runs/experiments/RUN --to onnx --out my-tokenizer-onnx

safetensors is the folder that `from_pretrained` reads, of any model. The others hold a tokenizer as two programs of any
batch size: encoder.onnx (or .pt2), images to token ids, and decoder.onnx, token ids to images; export.json, which says
what goes in and comes out, and README.md. They are run once on rendered images, and compared with the model. The
encoder compares all tokens of a batch with all codes at once: it takes B x h x w x K x 4 bytes.
"""

from pathlib import Path

from experiments.runtime import arguments
from experiments.runtime.errors import user_errors

FORMATS = ("safetensors", "torch.export", "onnx")


def main() -> None:
    parser = arguments.of_model("export", __doc__, in_batches=False)
    arguments.add_dry_run(parser)
    parser.add_argument("--to", choices=FORMATS, default="safetensors", help="(default: safetensors)")
    parser.add_argument("--out", default="exported", help="folder to write (default: exported)")
    given = parser.parse_args()
    from experiments.config.compose import as_yaml
    from experiments.pipeline.build import experiment_of
    from experiments.pipeline.exporting import export
    from experiments.runtime.files import require_empty
    from lightning_modules.models import MODULES, config_of
    from lightning_modules.pretrained import load_checkpoint
    from lightning_modules.tokenizer import Tokenizer

    with user_errors():
        if given.print_config:
            print(as_yaml(experiment_of(given.model)), end="")
            return
        out = Path(given.out).expanduser()
        require_empty(out)
        experiment = load_checkpoint(given.model)["experiment"]
        name = config_of(experiment["model"], experiment.get("plugins", "")).name
        if given.dry_run:
            print(f"{out}: {name} as {given.to}")
            return
        if given.to == "safetensors":
            kind, _ = MODULES[name]
            kind.from_pretrained(given.model).save_pretrained(out)
            print(out)
            return
        agreement = export(Tokenizer.from_pretrained(given.model), out, given.to)["agreement"]
        print(f"{out}: " + ", ".join(f"{name} {value:.3g}" for name, value in agreement.items()))


if __name__ == "__main__":
    main()
