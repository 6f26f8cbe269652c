#!/usr/bin/env bash
# One run on 4 nodes of 8 GPUs: `sbatch docs/slurm_train.sh experiments/vqgan_lc_imagenet.yaml runtime.data_dir=/data/imagenet`
# srun starts one process a GPU; how many there are is read from SLURM, so no key of the recipe says it.
# The repository, the data and runtime.output_dir are on a disk that all nodes share. Example: not run on a cluster.
#SBATCH --job-name=vq-train
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.log
set -euo pipefail
cd "$SLURM_SUBMIT_DIR"

export OMP_NUM_THREADS=1
export NCCL_DEBUG=WARN
# One process that fails ends the job: the others would wait for it.
srun --kill-on-bad-exit=1 .venv/bin/python -m experiments.train "$1" runtime.num_workers=8 "${@:2}"
# The same sbatch line continues a run that was stopped, and does nothing for one that is finished.
