"""Sampling: `generate` with its cache against GPT-2 of the transformers library with its cache, and against no cache.

    pip install -e .[bench]
    python -m benchmarks.sampling         # 8 blocks of width 512, 8 images of 256 tokens, vocabulary 8,192

Each pair is timed in turn, in one process. GPT-2 has the same blocks, width, vocabulary and batch, and draws from the
whole distribution, as `generate` does. Without a cache every token runs the whole sequence again: that side computes
only every `--every`th token, and its time is multiplied by `--every`. `--bf16`: as in a run of bf16-mixed; all sides
compute in bf16. The last lines are `NAME RATIO`: how many times faster `generate` is.
"""

import argparse
from collections.abc import Callable

import torch

from benchmarks.timing import Side, paired, peak_memory, report
from lightning_modules.networks.gpt import GPT, GPTConfig
from lightning_modules.networks.sampling import generate

Run = Callable[[], object]


def transformers_gpt2(model: GPT, batch: int, dtype: torch.dtype = torch.float32) -> Run:
    """`generate` of a random GPT-2 of the model's size."""
    try:
        from transformers import GPT2Config, GPT2LMHeadModel
    except ImportError as error:
        raise SystemExit(f"{error}: this comparison needs the bench extra, pip install -e .[bench]") from error
    size = model.size
    config = GPT2Config(
        vocab_size=model.vocab_size,
        n_positions=model.num_tokens + 1,
        n_embd=size.width,
        n_layer=size.blocks,
        n_head=size.heads,
        n_inner=size.mlp_width,
        bos_token_id=0,
        eos_token_id=None,
        pad_token_id=0,
    )
    gpt2 = GPT2LMHeadModel(config).eval().to(dtype)
    start = torch.zeros(batch, 1, dtype=torch.long)
    options = {"do_sample": True, "top_k": 0, "max_new_tokens": model.num_tokens, "use_cache": True}

    @torch.inference_mode()
    def run() -> None:
        tokens = gpt2.generate(start, attention_mask=torch.ones_like(start), **options)
        assert tokens.shape == (batch, model.num_tokens + 1)

    return run


def without_cache(model: GPT, batch: int, every: int, bf16: bool = False) -> Run:
    """The whole sequence again for each `every`th token; only the last slot's logits."""
    tokens = torch.randint(model.vocab_size, (batch, model.num_tokens))

    @torch.inference_mode()
    @torch.autocast("cpu", torch.bfloat16, enabled=bf16)
    def run() -> None:
        for t in range(every // 2, model.num_tokens, every):
            model.logits(model(tokens[:, :t])[:, -1]).float().softmax(1).multinomial(1)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="small", help="a key of GPT_SIZES")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--grid", type=int, default=16, help="rows and columns of tokens")
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--runs", type=int, default=5, help="timed images batches of each side")
    parser.add_argument("--every", type=int, default=16, help="tokens that the side without a cache leaves out, plus 1")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bf16", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    model = GPT(GPTConfig(size=arguments.size), arguments.vocabulary, (arguments.grid, arguments.grid)).eval()
    image_ids = range(arguments.batch)

    @torch.autocast("cpu", torch.bfloat16, enabled=arguments.bf16)
    def subject() -> object:
        return generate(model, image_ids)

    num_tokens = arguments.batch * model.num_tokens
    every, dtype = arguments.every, torch.bfloat16 if arguments.bf16 else torch.float32
    others = {
        "sampling_vs_transformers": ("GPT-2, transformers", transformers_gpt2(model, arguments.batch, dtype), 1),
        "sampling_vs_no_cache": ("no cache", without_cache(model, arguments.batch, every, arguments.bf16), every),
    }
    ratios = {}
    for name, (label, baseline, factor) in others.items():
        runs = arguments.runs if factor == 1 else 1
        seconds = paired(subject, baseline, runs, warmup=1 if factor == 1 else 0)
        sides = (
            Side("generate", seconds[0], peak_memory(subject)),
            Side(label, [value * factor for value in seconds[1]], peak_memory(baseline) if factor == 1 else None),
        )
        ratios[name] = report(name, *sides)
        print(*(f"{side.label}: {num_tokens / min(side.seconds):,.0f} tokens/s at best" for side in sides), sep="; ")
    for name, ratio in ratios.items():
        print(f"{name} {ratio:.3g}")


if __name__ == "__main__":
    main()
