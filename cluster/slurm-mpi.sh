#!/usr/bin/env bash
# distbp on Slurm with the engine mpi. Change the #SBATCH lines and ENVIRONMENT; then: sbatch cluster/slurm-mpi.sh recipe.yaml
# One task is one worker. The machines see the same paths and reach each other by ssh.
#SBATCH --job-name=distbp
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=1
#SBATCH --time=01:00:00
set -euo pipefail
ENVIRONMENT=${ENVIRONMENT:-$HOME/distbp-env}
export PATH=$ENVIRONMENT/bin:$PATH
hosts=$(mktemp --tmpdir="$PWD" distbp-hosts.XXXXXX)
trap 'rm -f "$hosts"' EXIT
scontrol show hostnames "$SLURM_JOB_NODELIST" | sed "s/$/ slots=$SLURM_NTASKS_PER_NODE/" > "$hosts"
case " $* " in *" --resume "*) out=() ;; *) out=(--out "runs/slurm-$SLURM_JOB_ID") ;; esac
"$ENVIRONMENT/bin/mpirun" --with-ft ulfm --hostfile "$hosts" -n "$SLURM_NTASKS" --bind-to none \
    "$ENVIRONMENT/bin/distbp" train "$@" "${out[@]}"
