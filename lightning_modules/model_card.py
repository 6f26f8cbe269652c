"""The page that explains an exported model to people: what it is, how good, measured how, and how to use it."""

import json
from pathlib import Path
from typing import Any

from lightning_modules.archives import DISCRIMINATOR

CARD = """---
library_name: vq-image-modeling
tags: [{tags}]
---

# {title}

The whole configuration is in `{config}`.

```python
{code}
```

| | |
|---|---|
{facts}

{metrics}
"""
LOAD = """from lightning_modules import {kind}

model = {kind}.from_pretrained("path/to/this/folder")
"""
USAGE = {
    "Tokenizer": LOAD + "ids = model.encode(images).indices    # images (B, 3, {size}, {size}) in [-1, 1]\n"
    "images = model.decode_indices(ids)",
    "Prior": LOAD + "images = model.generate(labels={labels}, seed=0)    # (3, 3, {size}, {size}) in [-1, 1]",
}


def model_card(module: Any, content: dict[str, Any], config: str, code: str = "") -> str:
    """Markdown for `module` with the `content` of its file `config`; metrics are those of its result record.

    `code`: Python that uses the files, {size} for the side of an image; "" = that of `from_pretrained`.
    """
    words = dict(module.config.describe())
    title, kind = words.pop("model"), "Tokenizer" if hasattr(module, "encode") else "Prior"
    experiment = content["experiment"]
    sizes = [value.numel() for name, value in module.named_parameters() if not name.startswith(DISCRIMINATOR)]
    facts = words | {
        "parameters": f"{sum(sizes) / 1e6:.2f} M",
        "image size": f"{module.image_size} pixels",
        "trained on": content.get("data_id", "not recorded"),
        "training steps": str(experiment.get("trainer", {}).get("max_steps", "not recorded")),
        "hash of the weights": f"`{content['weights']}`",
    }
    if imported := content.get("imported"):
        facts["imported from"] = f"{imported['family']}, `{imported['file']}`"
    return CARD.format(
        tags="image-tokenization, vector-quantization" if kind == "Tokenizer" else "image-generation",
        title=title,
        config=config,
        code=(code or USAGE[kind]).format(kind=kind, size=module.image_size, labels=example_labels(module)),
        facts="\n".join(f"| {key} | {value} |" for key, value in facts.items()),
        metrics=metrics_table(content.get("metrics", {}), content.get("protocols", {})),
    )


def example_labels(module: Any) -> object:
    """Three classes, or the number of images of a model without classes."""
    classes = getattr(module, "num_conditions", 0)
    return [number % classes for number in range(3)] if classes else 3


def metrics_table(metrics: dict[str, float], protocols: dict[str, str]) -> str:
    """Each number beside the protocol it was measured by: without one it means nothing."""
    if not metrics:
        return "No result record was found beside the checkpoint, so this page holds no metrics."
    rows = [f"| {name} | {value:.4g} | `{protocols.get(name, '')}` |" for name, value in sorted(metrics.items())]
    return "\n".join(["| metric | value | protocol |", "|---|---|---|", *rows])


def record_of(path: Path, checkpoint: dict[str, Any]) -> dict[str, Any]:
    """`metrics` and `protocols` of the run that made OUTPUT_DIR/experiments/RUN/checkpoints/FILE; {} = not found."""
    parents = path.absolute().parents
    if len(parents) < 4 or parents[0].name != "checkpoints":
        return {}
    wanted = json.loads(json.dumps(checkpoint["experiment"]))
    for file in (parents[3] / "records").glob(f"*.{checkpoint.get('data_id')}.json"):
        try:
            record = json.loads(file.read_text())
            if record["config"] == wanted:
                return {key: record[key] for key in ("metrics", "protocols")}
        except (OSError, ValueError, KeyError, TypeError):  # a damaged record is its own command's business
            continue
    return {}
