"""Trained tokenizers as archives for a release: what `from_pretrained` reads, with a model card, and checksums."""

import hashlib
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from experiments.config.compose import parse
from experiments.config.experiment import MODULES, Experiment
from experiments.pipeline.codebooks.build import codebook_path, with_source_data
from experiments.pipeline.inputs import Inputs
from experiments.pipeline.run_folders import RunFolder, columns_of, unlike_most
from experiments.pipeline.weights import restore_weights
from experiments.runtime.files import replacing
from experiments.runtime.records import PUBLISHED, Record, find_records
from lightning_modules.checks import require
from lightning_modules.frozen import freeze
from lightning_modules.pretrained import KEPT, load_checkpoint
from lightning_modules.tokenizer import Tokenizer

SUMS, NOTES = "SHA256SUMS", "NOTES.md"
SHOWN = ("rfid", "psnr", "ssim", "lpips", "usage/val")  # in the notes
EPOCH = (1980, 1, 1, 0, 0, 0)  # zip's first moment: the same model gives the same bytes at any time


class Trained(NamedTuple):
    """A finished tokenizer: its file, what is in it without the weights, and how good it is."""

    file: Path
    experiment: Experiment
    content: dict[str, Any]
    record: Record

    @property
    def name(self) -> str:
        """vqgan_lc_large_codebook_k16384_s0_DIGEST."""
        model = self.experiment.tokenizer
        digest = self.experiment.digest()
        return f"{model.name}_{model.quantizer.name}_k{model.codebook_size}_s{self.experiment.seed}_{digest}"


def files_in(output_dir: Path) -> list[Path]:
    """Final checkpoints of runs, then kept weights."""
    checkpoints = sorted(output_dir.glob("experiments/*/checkpoints/final.ckpt"))
    return [*checkpoints, *sorted(output_dir.glob("weights/*.pt"))]


def trained_in(output_dir: Path) -> Iterator[Trained | str]:
    """The finished tokenizers of OUTPUT_DIR, each once; or a line that says why a file is left out."""
    seen: set[tuple[str, str]] = set()
    for file in files_in(output_dir):
        try:
            content = load_checkpoint(file)
            experiment = parse(content["experiment"], str(file))
            runtime = replace(experiment.runtime, output_dir=str(output_dir))
            experiment = replace(experiment, runtime=runtime)
        except ValueError as error:
            yield str(error)
            continue
        key = (experiment.digest(), str(content.get("data_id")))
        if key in seen or not issubclass(MODULES[experiment.model.name][0], Tokenizer):
            continue
        seen.add(key)
        record = find_records(experiment, [output_dir / "records", PUBLISHED]).get(key[1])
        if record is None:
            yield f"{file}: not evaluated yet"
            continue
        kept = {name: content[name] for name in (*KEPT, "record") if name in content}
        yield Trained(file, experiment, kept, record)


def restored(trained: Trained) -> Tokenizer:
    """The frozen tokenizer, with what its card says. Raises ValueError."""
    experiment, content = trained.experiment, dict(trained.content)
    steps = content.get("generator_steps", experiment.trainer.max_steps)
    if content.pop("record", None) is None:
        tokenizer = Tokenizer.from_pretrained(trained.file)
    else:
        inputs = Inputs(content["data_id"], content.get("images", {}))
        if experiment.model.needs_codebook and not experiment.model.quantizer.source.path:  # type: ignore[attr-defined]
            table = codebook_path(*with_source_data(experiment, inputs.data_id.partition("+")[0]))
            made = experiment.model.quantizer.source.method == "normal"  # type: ignore[attr-defined]
            require(made or table.is_file(), f"{trained.file}: its codebook is not there: {table}")
        tokenizer = freeze(restore_weights(trained.file, experiment, inputs)[0])
    measured = {key: trained.record[key] for key in ("metrics", "protocols")}
    tokenizer.origin = content | measured | {"generator_steps": steps}
    return tokenizer


def pack(trained: Trained, out: Path) -> Path:
    """Writes OUT/NAME.zip with the folder NAME in it. Raises ValueError."""
    path = out / f"{trained.name}.zip"
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / trained.name
        restored(trained).save_pretrained(folder)
        out.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for each in sorted(folder.iterdir()):
                entry = zipfile.ZipInfo(f"{trained.name}/{each.name}", EPOCH)
                entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
                archive.writestr(entry, each.read_bytes())
    return path


def write_lists(packed: dict[Path, Trained], out: Path) -> None:
    """SHA256SUMS, as `sha256sum -c` reads it, and NOTES.md, a row a model."""
    sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}" for path in packed]
    (out / SUMS).write_text("\n".join(sums) + "\n")
    runs = [RunFolder(each.file, each.experiment, each.record, "finished") for each in packed.values()]
    columns = columns_of(runs, SHOWN)
    marks = [f"{name} [{number}]" for number, (name, _) in enumerate(columns, 1)]
    rows = [["archive", "MB", "images", *marks, "unlike most of them"], ["---"] * (4 + len(marks))]
    for path, run, *values, unlike in zip(packed, runs, *columns.values(), unlike_most(runs), strict=True):
        assert run.record is not None
        numbers = ["" if value is None else f"{value:.4g}" for value in values]
        size = f"{path.stat().st_size / 1e6:.1f}"
        rows.append([f"`{path.stem}`", size, run.record["data_id"], *numbers, f"`{unlike}`" if unlike else ""])
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    protocols = "\n".join(f"- [{number}] `{protocol}`" for number, (_, protocol) in enumerate(columns, 1))
    usage = "Unpack an archive and read it with `Tokenizer.from_pretrained(FOLDER)`; its README.md says more."
    (out / NOTES).write_text(f"Trained tokenizers.\n\n{usage}\n\n{table}\n\n{protocols}\n")
