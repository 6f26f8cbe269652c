"""Samples images of a trained VIM, LDM, DiT or SiT: one grid, a folder of PNG files, or an .npz file for evaluators.

    python -m experiments.sample runs/experiments/RUN/checkpoints/final.ckpt --num 64 --seed 0
    python -m experiments.sample runs/experiments/RUN/checkpoints/final.ckpt --num 50000 --format npz --out samples.npz

Image i of a seed is the same at any batch size and number of images. The same command continues a folder; with --accept
its candidates are sampled again. Keys may say where it runs (runtime.accelerator=cpu). npz files hold arr_0
(N, H, W, 3) uint8 and, of a model with classes, the labels arr_1 (N,), as the evaluator of guided diffusion (ADM) reads
them.
"""

import sys

from experiments.runtime import arguments
from experiments.runtime.errors import user_errors


def main() -> None:
    parser = arguments.of_checkpoint("sample", __doc__)
    arguments.add_dry_run(parser)
    parser.add_argument("--num", type=int, default=64, help="images (default: 64)")
    parser.add_argument("--classes", help="numbers or names, such as 0,3 or cat,dog, in turn; or all (default)")
    parser.add_argument("--temperature", type=float, help="this and the seven below: default as the recipe says")
    parser.add_argument("--top-k", type=int, help="only the k most likely tokens; 0 = all")
    parser.add_argument("--top-p", type=float, help="only the fewest tokens of this probability together; 1 = all")
    parser.add_argument("--steps", type=int, help="of a diffusion or flow")
    parser.add_argument("--sampler", help="ddim or ancestral of LDM and DiT; heun, euler or dopri5 of SiT")
    parser.add_argument("--eta", type=float, help="share of the noise in ddim; 0 = none")
    parser.add_argument("--guidance", type=float, help="scale of classifier-free guidance; 1 = none")
    parser.add_argument("--precision", help="32, or bf16: the network in bfloat16, faster where the device has it")
    parser.add_argument("--accept", type=float, default=1.0, help="keep this share, the best of each class (A-Table 6)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=64, help="changes only speed and memory")
    parser.add_argument(
        "--format", choices=("grid", "png", "npz"), default="grid", help="one PNG, a folder of them, or npz"
    )
    parser.add_argument("--out", help="file or folder (default: RUN/samples/...)")
    parser.add_argument("--tokenizer", help="the tokenizer's checkpoint (default: that of the upstream run)")
    given = parser.parse_intermixed_args()
    from experiments.config.compose import as_yaml
    from experiments.pipeline.sample_files import start, write
    from experiments.pipeline.samples import images_of, prepare
    from experiments.pipeline.upstream import restore_for

    with user_errors():
        if given.print_config:
            print(as_yaml(restore_for(given, "the model")[0]), end="")
            return
        if (prepared := prepare(given)) is None:
            return
        job, out, description = prepared
        if given.dry_run:
            print(f"{out}: {job.num} images as {given.format}")
            return
        if words := job.legend():
            print(words, file=sys.stderr)
        done = start(out, given.format, description)
        write(out, given.format, images_of(job, done), job.num, len(job.classes), job.module.image_size)
        print(out)


if __name__ == "__main__":
    main()
