#!/usr/bin/env bash
# The matrix on Slurm: sbatch --nodes=8 --gpus-per-node=1 --cpus-per-task=8 --time=12:00:00 deploy/slurm.sh /shared/qvlfp8
# In an environment that every node sees (pip install -e '.[ray]'); the argument is a folder that every node sees.
#SBATCH --ntasks-per-node=1
set -euo pipefail
shared=${1:?name a folder that every node sees}
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 20000))
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN=${RAY_AUTH_TOKEN:-$(openssl rand -hex 32)}
export QVLFP8_NODE_STORE=${TMPDIR:-/tmp}/qvlfp8-$USER
srun --nodes=1 --ntasks=1 --nodelist="$head" ray start --head --port="$port" --block &
sleep 20
others=$((SLURM_JOB_NUM_NODES - 1))
if ((others)); then srun --nodes="$others" --ntasks="$others" --exclude="$head" ray start --address="$head:$port" --block & sleep 20; fi
srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" \
    qvlfp8 matrix --all --engine ray --address "$head:$port" --shared "file://$shared" --without-evidence
