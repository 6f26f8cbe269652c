"""Packs the trained tokenizers of an output folder for a release: an archive each, checksums and notes.

    python -m experiments.release --output-dir runs --out build/release

Of every tokenizer that is trained and measured, whether its run's final checkpoint is there or only its kept weights
(`sweeps.run --keep-weights`): OUT/NAME.zip, the folder that `Tokenizer.from_pretrained` reads, with a model card.
Beside them SHA256SUMS and NOTES.md. Nothing is uploaded: the command that does it is printed.
"""

import shlex
from importlib.metadata import version
from pathlib import Path

from experiments.runtime import arguments
from experiments.runtime.errors import user_errors


def main() -> None:
    parser = arguments.plain("release", __doc__)
    parser.add_argument("--output-dir", default="runs", help="where the runs are (default: runs)")
    parser.add_argument("--out", default="build/release", help="folder to write (default: build/release)")
    arguments.add_dry_run(parser)
    given = parser.parse_args()
    from experiments.pipeline.releasing import NOTES, SUMS, pack, trained_in, write_lists
    from experiments.runtime.files import require_empty
    from lightning_modules.checks import require

    with user_errors():
        output_dir, out = Path(given.output_dir), Path(given.out)
        require(output_dir.is_dir(), f"--output-dir {output_dir}: no such folder")
        if not given.dry_run:
            require_empty(out)
        packed = {}
        for trained in trained_in(output_dir):
            if isinstance(trained, str):
                print(f"left out: {trained}")
                continue
            if given.dry_run:
                print(f"{trained.name}: {trained.file}")
                continue
            try:
                packed[path := pack(trained, out)] = trained
                print(f"{path}: {path.stat().st_size / 1e6:.1f} MB", flush=True)
            except ValueError as error:
                print(f"left out: {error}", flush=True)
        if given.dry_run:
            return
        require(bool(packed), f"{output_dir}: no trained and measured tokenizer")
        write_lists(packed, out)
        tag, notes = f"v{version('vq-image-modeling')}", shlex.quote(str(out / NOTES))
        files = f"{shlex.quote(str(out))}/*.zip {shlex.quote(str(out / SUMS))}"
        print(f"to publish them: gh release create {tag} {files} --title {tag} --notes-file {notes}")


if __name__ == "__main__":
    main()
