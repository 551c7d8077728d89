#!/usr/bin/env bash
# distbp on Slurm with the engine ray. Change the #SBATCH lines and ENVIRONMENT; then: sbatch cluster/slurm-ray.sh recipe.yaml
# A Ray of the job's own: one raylet a machine, a worker a CPU. The machines see the same home folder, and the token in it.
#SBATCH --job-name=distbp
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=01:00:00
set -euo pipefail
ENVIRONMENT=${ENVIRONMENT:-$HOME/distbp-env}
export PATH=$ENVIRONMENT/bin:$PATH RAY_AUTH_MODE=token
[ -s "$HOME/.ray/auth_token" ] || (umask 077; ray get-auth-token --generate > /dev/null)
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 20000))
start=(ray start --block --disable-usage-stats --num-cpus "$SLURM_CPUS_PER_TASK")
srun --nodes=1 --ntasks=1 --nodelist="$head" "${start[@]}" --head --port="$port" --include-dashboard=false &
for _ in $(seq 60); do
    ray status --address "$head:$port" > /dev/null 2>&1 && break
    sleep 1
done
if [ "$SLURM_NNODES" -gt 1 ]; then
    others=$((SLURM_NNODES - 1))
    srun --nodes="$others" --ntasks="$others" --exclude="$head" "${start[@]}" --address="$head:$port" &
fi
case " $* " in *" --resume "*) out=() ;; *) out=(--out "runs/slurm-$SLURM_JOB_ID") ;; esac
distbp train "$@" "${out[@]}" --engine ray --address "$head:$port" --deadline 120 \
    --workers $((SLURM_NNODES * SLURM_CPUS_PER_TASK))
# The end of this script ends the raylets with the job.
