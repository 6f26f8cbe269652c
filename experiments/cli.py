"""One command for all: `vq-image-modeling COMMAND ...` runs the module that `COMMANDS` names.

Only the command's own module is imported, so that help comes at once.
"""

import ast
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from experiments.runtime import arguments
from lightning_modules.checks import hint

COMMANDS = {
    "check-data": "experiments.check_data",
    "train": "experiments.train",
    "evaluate": "experiments.evaluate",
    "reconstruct": "experiments.reconstruct",
    "tokenize": "experiments.tokenize",
    "detokenize": "experiments.detokenize",
    "export": "experiments.export",
    "release": "experiments.release",
    "sample": "experiments.sample",
    "runs": "experiments.runs",
    "compare": "experiments.compare",
    "preview": "experiments.preview",
    "build-codebook": "experiments.build_codebook",
    "import-checkpoint": "experiments.import_checkpoint",
    "leaderboard": "experiments.leaderboard",
    "sweep": "sweeps.run",
    "search": "sweeps.search",
    "table": "sweeps.table",
    "claims": "sweeps.claims",
    "report": "sweeps.report",
}


def first_line(module: str) -> str:
    """The first line of a module's docstring, which is not imported."""
    spec = find_spec(module)
    assert spec is not None and spec.origin is not None
    return (ast.get_docstring(ast.parse(Path(spec.origin).read_text())) or "").splitlines()[0]


def overview() -> str:
    rows = [f"  {name:18} {first_line(module)}" for name, module in COMMANDS.items()]
    usage = f"usage: {arguments.COMMAND} COMMAND ...     ({arguments.COMMAND} COMMAND --help explains one)"
    return "\n".join([usage, "", *rows])


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print(overview())
        return
    if name not in COMMANDS:
        others = hint(name, COMMANDS) or f"; there are {', '.join(COMMANDS)}"
        print(f"error: no command '{name}'{others}", file=sys.stderr)
        sys.exit(1)
    arguments.PROGRAM = f"{arguments.COMMAND} "
    sys.argv = [sys.argv[0], *sys.argv[2:]]
    import_module(COMMANDS[name]).main()


if __name__ == "__main__":
    main()
