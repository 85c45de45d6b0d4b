#!/bin/bash
# Training on two nodes with four GPUs each, one process for each GPU: sbatch deploy/slurm.sh
#SBATCH --job-name=concertormer
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@180
#SBATCH --requeue
#SBATCH --open-mode=append
# Every process must see all GPUs of its node (so no --gpus-per-task): JAX gives it the one of its number on the node.
# Three minutes before the time is over, all get SIGTERM, save, and end with status 143; the job is then queued again.
set -u
source .venv/bin/activate
srun python train.py --distributed --config=configs/gopro.py --workdir=runs/gopro
status=$?
if [ "$status" -eq 143 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
