#!/usr/bin/env bash
# One sweep on many nodes: each job of the array takes cells from the same queue until none is left.
#
#   sbatch --array=1-16 docs/slurm_sweep.sh ablation-codebook
#   sbatch --array=1-8 docs/slurm_sweep.sh search TRIALS=64
#
# Once, on the login node: `make setup`, `createdb -h db.example.org sweeps`, and the password in ~/.pgpass (mode 600).
#SBATCH --job-name=vq-sweep
#SBATCH --gpus=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --output=slurm-%x-%A_%a.log
set -euo pipefail

cd "${SLURM_SUBMIT_DIR:-.}"
export STORAGE=${STORAGE:-postgresql://sweeper@db.example.org/sweeps}
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-8}

# `exec`: the signal that comes 120 seconds before the time limit reaches the worker, which then gives its cell back.
exec srun --ntasks=1 make "${1:?which sweep: ablation-codebook, table4, search ...}" "${@:2}" \
  SCALE="${SCALE:-paper}" DATA_DIR="${DATA_DIR:-/data}" OUT="${OUT:-$SCRATCH/vq-runs}" WORKERS=1
