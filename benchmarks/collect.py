"""Runs the benchmarks one after the other and writes their table.

    python -m benchmarks.collect docs/benchmarks.md       # make bench
    python -m benchmarks.collect table.md --only probe token_loss

Each benchmark times its sides in turn, in a process of its own, and prints them above a line `NAME RATIO`: a row of the
table. A benchmark that fails is named there, and the command ends with status 1.
"""

import argparse
import platform
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch

# About a quarter of an hour on two idle cores.
COMMANDS = {
    "search": ["search", "--dense-runs", "2"],
    "large_codebook": ["large_codebook"],
    "recipe_step": ["recipe_step"],
    "vim_step": ["vim_step"],
    "paper_size_bf16": ["paper_size_bf16"],
    "one_forward": ["one_forward"],
    "token_loss": ["token_loss"],
    "sampling": ["sampling", "--runs", "2", "--every", "64"],
    "token_cache": ["token_cache"],
    "latent_cache": [
        *("token_cache", "--kind", "latents", "--recipe", "experiments/vqgan_ema_imagenet.yaml"),
        *("--images", "8", "--batch-size", "4", "--width", "384", "--blocks", "12", "--runs", "2"),
    ],
    "dit": ["dit"],
    "probe": ["probe"],
    "ddp": ["ddp", "--runs", "2"],
    "ddp_patchgan": ["ddp", "--runs", "2", "--recipe", "experiments/vqgan_ema_cifar10.yaml", "--name", "ddp_patchgan"],
}
BARS = {
    "search_vs_dense_d8": "> 1",
    "search_vs_faiss_d8": "> 1",
    "search_vs_faiss_d32": "> 1",
    "large_codebook": "<= 1.15",
    "recipe_step_lc": ">= 3",
    "recipe_step_vit": ">= 3",
    "vim_step": ">= 2",
    "one_forward": "> 1",
    "token_loss_vs_whole_logits": "> 1",
    "sampling_vs_no_cache": ">= 20",
    "sampling_vs_transformers": ">= 2",
    "latent_cache": ">= 3",
    "dit_step_vs_timm": ">= 0.95",
    "heun_vs_loop": ">= 1.5",
    "probe_all_blocks": "<= 1.5",
    "ddp": ">= 0.85",
    "ddp_patchgan": ">= 0.85",
}
HEAD = """Written by `make bench` from one run; each pair was timed in turn, in one process. A ratio says how many times
faster this project is, but for `large_codebook` and `probe_all_blocks`, the time of the larger of two settings over
that of the smaller, and `ddp`, the speed of two processes over that of one. What each benchmark does: the head of its
file in [benchmarks/](../benchmarks)."""
RATIO = re.compile(r"([a-z][a-z0-9_]*) ([0-9][0-9.e+-]*)")
SIDE = re.compile(r"(.+?)\s+([\d,.]+ ms)\s+[\d,.]+ ms\s+[\d,.]+ ms\s+\d+\s+(-|[\d,]+ MiB)")
SPEED = re.compile(r"(.+?)\s+median\s+([\d,.]+ images/s).*")


@dataclass
class Row:
    name: str
    ratio: float
    sides: list[tuple[str, str, str]] = field(default_factory=list)  # label, median, peak memory


def parse(text: str) -> list[Row]:
    """The rows of a benchmark's output. A name that is printed again, as in a summary, keeps its first row."""
    rows: dict[str, Row] = {}
    sides: list[tuple[str, str, str]] = []
    for line in text.splitlines():
        if match := SIDE.fullmatch(line.strip()):
            sides.append((match[1], match[2], match[3]))
        elif match := SPEED.fullmatch(line.strip()):
            sides.append((match[1], match[2], "-"))
        elif match := RATIO.fullmatch(line.strip()):
            rows.setdefault(match[1], Row(match[1], float(match[2]), sides))
            sides = []
    return list(rows.values())


def run(command: list[str]) -> tuple[str, bool]:
    """What a benchmark prints, shown while it runs, and whether it ended well."""
    print(f"\n$ python -m benchmarks.{' '.join(command)}", flush=True)
    process = subprocess.Popen([sys.executable, "-m", f"benchmarks.{command[0]}", *command[1:]], stdout=-1, text=True)
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        print(line, end="", flush=True)
        lines.append(line)
    return "".join(lines), process.wait() == 0


def machine() -> str:
    """CPU, cores, memory and versions, in one line."""
    cpu, memory = platform.processor() or platform.machine(), ""
    if Path("/proc/cpuinfo").exists():
        found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
        cpu = found[1] if found else cpu
        memory = f", {int(Path('/proc/meminfo').read_text().split()[1]) / 2**20:.0f} GiB"
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{cpu} ({capability}), {torch.get_num_threads()} threads{memory}{gpu}; {versions}"


def holds(ratio: float, bar: str) -> bool:
    sign, value = bar.split()
    return {">": ratio > float(value), ">=": ratio >= float(value), "<=": ratio <= float(value)}[sign]


def table(results: dict[str, tuple[list[Row], bool]], where: str) -> str:
    lines = [
        "# Benchmarks",
        "",
        HEAD,
        "",
        f"Machine: {where}.",
        "",
        "| name | ratio | bar | met | sides: median, peak memory |",
        "|---|---:|---|---|---|",
    ]
    for command, (rows, is_well) in results.items():
        for row in rows:
            bar = BARS.get(row.name, "")
            met = "" if not bar else "yes" if holds(row.ratio, bar) else "**no**"
            sides = "; ".join(f"{label}: {median}" + (f", {m}" if m != "-" else "") for label, median, m in row.sides)
            lines.append(f"| `{row.name}` | {row.ratio:.3g} | {bar} | {met} | {sides} |")
        if not is_well:
            lines.append(f"| `{command}` | failed | | **no** | |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="that is written")
    parser.add_argument("--only", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    arguments = parser.parse_args()
    results = {}
    for name in arguments.only:
        text, is_well = run(COMMANDS[name])
        results[name] = (parse(text), is_well)
        arguments.file.write_text(table(results, machine()))
    sys.exit(0 if all(is_well for _, is_well in results.values()) else 1)


if __name__ == "__main__":
    main()
