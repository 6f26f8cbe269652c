"""What one GPU makes of this suite: a line `NAME RATIO (bar)` for each thing measured, both sides in this run.

    python -m benchmarks.gpu                        # about two minutes on an H100
    python -m benchmarks.gpu --only search step     # some of: search, step, codes, vit, sampling
    python -m benchmarks.gpu --all                  # also the variants of the step that compile for a minute or more
    python -m benchmarks.gpu --device cpu --tiny    # tries the program itself; its numbers mean nothing

Steps are those of Lightning's whole loop with the recipe's losses, its game on and its images in the GPU's memory. What
fails is reported, and the rest goes on.
"""

import argparse
import sys
import time
import traceback
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu_loop import RECIPES, Bench, step_seconds, untrained
from experiments.config.compose import load_experiment
from experiments.runtime.trainer import quiet
from lightning_modules.networks.gpt import GPT, GPTConfig
from lightning_modules.networks.sampling import generate
from lightning_modules.quantizers import QuantizerOutput
from lightning_modules.quantizers.search import nearest_code
from lightning_modules.quantizers.search.tiled import search_tiled

GAME = ("model.loss.discriminator_start=0", "model.loss.adversarial_start=0")
TINY_CNN = ("model.backbone.channels=8", "data.batch_size=4")
TINY_VIT = ("model.backbone.encoder_dims=[1,2,32,64]", "model.backbone.decoder_dims=[1,2,32,64]", "data.batch_size=2")
JUDGE = ("model.metrics.extractor=efficientnet-lite0", "model.metrics.lpips=none")  # needs no download
LC = ("vqgan_lc_cifar10.yaml", "model.codebook_size=16384", "data.batch_size=256", *GAME, *JUDGE)
BF16 = "trainer.precision=bf16-mixed"
VARIANTS: dict[str, tuple[str, ...]] = {  # of a step; those that this version has no key for are left out
    "float32, eager": ("trainer.precision=32-true", "trainer.compile=none"),
    "bf16, eager": (BF16, "trainer.compile=none"),
    "bf16, channels_last": (BF16, "trainer.memory_format=channels_last", "trainer.compile=none"),
    "bf16, graphs": (BF16, "trainer.compile=graphs"),
    "bf16, networks": (BF16, "trainer.compile=networks"),  # with --all
}


def bar(name: str, value: float, limit: float, at_least: bool = True) -> None:
    is_met = value >= limit if at_least else value <= limit
    side = "at least" if at_least else "at most"
    print(f"{name} {value:.3g} (bar: {side} {limit:g}, {'met' if is_met else 'MISSED'})", flush=True)


# ---- the search


def search(bench: Bench) -> None:
    num_tokens, num_codes, dim = (500, 3000, 8) if bench.tiny else (65_536, 100_000, 8)
    z, codebook = (torch.randn(n, dim, device=bench.device) for n in (num_tokens, num_codes))

    def chunked() -> Tensor:
        return torch.cat([torch.cdist(part, codebook).argmin(1) for part in z.split(4096)])

    ours = bench.seconds(lambda: nearest_code(z, codebook))
    tiled = bench.seconds(lambda: search_tiled(z, codebook), 3)
    dense = bench.seconds(chunked, 3)
    print(
        f"{num_tokens:,} tokens x {num_codes:,} codes x {dim}: {1e3 * ours:.2f} ms, tiled {1e3 * tiled:.2f}, ", end=""
    )
    print(f"cdist and argmin {1e3 * dense:.2f}; {2 * num_tokens * num_codes * dim / ours / 1e12:.1f} TFLOP/s")
    bar("gpu_search_vs_tiled", tiled / ours, 3)
    bar("gpu_search_vs_cdist", dense / ours, 3)
    bar("gpu_search_extra_mib", bench.extra_mib(lambda: nearest_code(z, codebook)), 64, at_least=False)


# ---- steps of the whole loop


def variants(bench: Bench, recipe: str, *overrides: str) -> dict[str, float]:
    """Seconds of a step in each of `VARIANTS`."""
    seconds = {}
    for name, options in VARIANTS.items():
        if "networks" in name and not bench.all:
            continue
        known = [option for option in options if has(recipe, option) or "=none" not in option]
        try:
            seconds[name] = step_seconds(bench, name, recipe, *overrides, *known)
        except Exception as error:
            print(f"{name}: {type(error).__name__}: {error}", flush=True)
    return seconds


def has(recipe: str, option: str) -> bool:
    try:
        load_experiment(RECIPES / recipe, [option])
    except ValueError:
        return False
    return True


def step(bench: Bench) -> None:
    """VQGAN-LC at 16,384 codes, batch 256."""
    found = variants(bench, *LC, *(TINY_CNN if bench.tiny else ()))
    best = min(found, key=found.__getitem__)
    print(f"best: {best}, {1 / found[best]:.1f} steps/s of the whole loop")
    bar("gpu_recipe_step_lc", found["float32, eager"] / found[best], 2)


def codes(bench: Bench) -> None:
    """VQGAN-LC at 100,000 codes and at 1,024, in the fastest variant that is there."""
    fast = [VARIANTS["bf16, graphs"]] if has(LC[0], "trainer.compile=graphs") else []
    options = (*(fast[0] if fast else (BF16,)), *(TINY_CNN if bench.tiny else ()))
    few, many = (1024, 3000) if bench.tiny else (1024, 100_000)
    seconds = {}
    for size in (few, many):
        seconds[size] = step_seconds(bench, f"{size:,} codes", *LC, *options, f"model.codebook_size={size}")
    bar("gpu_large_codebook", seconds[many] / seconds[few], 1.05, at_least=False)


def vit(bench: Bench) -> None:
    """ViT-VQGAN Base-Base at 256 pixels, batch 32, bf16, without perceptual loss and game: its share of what products
    of bf16 matrices reach here."""
    side = 1024 if bench.tiny else 8192
    a, b = (torch.randn(side, side, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
    rate = 2 * side**3 / bench.seconds(lambda: a @ b, 20)
    alone = ("model.loss.perceptual=0", "model.loss.adversarial=0", "data.batch_size=32", *JUDGE)
    small = ("data.image_size=32", *TINY_VIT) if bench.tiny else ()
    options = ("vit_vqgan_imagenet.yaml", *alone, BF16, "trainer.validate_every=0", *small)
    module = untrained(load_experiment(RECIPES / options[0], options[1:]))
    with torch.device("meta"):
        image = torch.empty(1, 3, module.image_size, module.image_size)
    module.quantizer.forward = passed_on  # the search is no product of the networks
    with FlopCounterMode(display=False) as counter:
        module.to("meta")(image).reconstruction.mean().backward()
    batch = load_experiment(RECIPES / options[0], options[1:]).data.batch_size
    seconds = step_seconds(bench, "ViT Base-Base, bf16", *options)
    reached = counter.get_total_flops() * batch / seconds
    print(f"{reached / 1e12:.0f} TFLOP/s of {rate / 1e12:.0f} in a product of {side} x {side} matrices in bf16")
    bar("gpu_vit_base_share", reached / rate, 0.4)


def passed_on(z: Tensor) -> Any:
    """In place of a quantizer: every latent is its own code."""
    return QuantizerOutput(z, torch.zeros(z.shape[:-1], dtype=torch.int64, device=z.device), z.new_zeros(()))


# ---- sampling


def sampling(bench: Bench) -> None:
    """64 images of 256 tokens, 8 blocks of width 512; GPT-2 of transformers has the same size."""
    from transformers import GPT2Config, GPT2LMHeadModel

    batch, grid, vocabulary = (2, 3, 50) if bench.tiny else (64, 16, 8192)
    model = GPT(GPTConfig(size="micro" if bench.tiny else "small"), vocabulary, (grid, grid)).to(bench.device).eval()
    size, num_tokens = model.size, model.num_tokens
    config = GPT2Config(
        vocab_size=vocabulary, n_positions=num_tokens + 1, n_embd=size.width, n_layer=size.blocks, n_head=size.heads,
        n_inner=size.mlp_width, bos_token_id=0, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    gpt2: Any = GPT2LMHeadModel(config)
    gpt2 = gpt2.to(bench.device).eval()
    start = torch.zeros(batch, 1, dtype=torch.long, device=bench.device)
    options = {"do_sample": True, "top_k": 0, "max_new_tokens": num_tokens, "use_cache": True}

    @torch.inference_mode()
    def other() -> Tensor:
        return gpt2.generate(start, attention_mask=torch.ones_like(start), **options)

    ours = bench.seconds(lambda: generate(model, range(batch)), 3)
    theirs = bench.seconds(other, 2)
    print(f"{batch} x {num_tokens} tokens: {ours:.3f} s, GPT-2 of transformers {theirs:.3f} s")
    bar("gpu_sampling_vs_transformers", theirs / ours, 2)


BENCHMARKS = {"search": search, "step": step, "codes": codes, "vit": vit, "sampling": sampling}


def main(arguments: list[str] | None = None) -> int:
    """Returns how many benchmarks failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="sizes that a CPU takes")
    parser.add_argument("--all", action="store_true", help="also torch.compile of the networks")
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, default=list(BENCHMARKS))
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("torch finds no GPU here; --device cpu --tiny tries the program itself")
    quiet()
    if options.tiny:
        torch.set_num_threads(1)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}", flush=True)
    failed = 0
    for title in options.only:
        start = time.perf_counter()
        print(f"\n# {title}", flush=True)
        try:
            BENCHMARKS[title](Bench(device, options.tiny, options.all))
        except Exception:
            failed += 1
            traceback.print_exc(file=sys.stdout)
        print(f"({time.perf_counter() - start:.0f} s)", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(1 if main() else 0)
