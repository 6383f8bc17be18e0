# Sourced by the job scripts in this directory, in the repository root: where ranks meet, signals, requeueing.

set -uo pipefail
if [ ! -f launch/pretrain.py ]; then
    echo "error: $PWD has no launch/pretrain.py; submit job scripts from the repository root" >&2
    exit 2
fi
PYTHON=${PYTHON:-python} # or activate an environment in the job script

# Ranks meet on the job's first node. The port is the job's own, so two jobs on a node do not collide.
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR
export MASTER_PORT=${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 20000))}

# NCCL. What stands in the environment wins; uncomment what your network needs (docs/clusters.md).
export NCCL_DEBUG=${NCCL_DEBUG:-WARN} # INFO tells which network and which links between GPUs are used
# export NCCL_SOCKET_IFNAME=ib0       # the interface of the fast network; `ip -br address` lists them
# export GLOO_SOCKET_IFNAME=ib0       # the same for runs without GPUs
# export NCCL_IB_HCA=mlx5             # InfiniBand adapters by prefix; keep the management port out of it
# export NCCL_IB_TIMEOUT=22           # large fabrics: 4 us * 2^22 = 17 s until a packet counts as lost
# export NCCL_IB_DISABLE=1            # TCP instead, to find out whether InfiniBand is to blame

# Run the job's step (an srun command) and end with its exit code; requeue the job if that is 75. Signals that the
# batch script gets (`scancel --batch`, pre-emption) go on to the step, whose end is waited for.
run_step() {
    signalled=no
    trap 'signalled=yes; kill -s USR1 "$step" 2>/dev/null' USR1
    trap 'signalled=yes; kill -s TERM "$step" 2>/dev/null' TERM
    "$@" &
    step=$!
    while :; do
        wait "$step"
        code=$?
        [ "$signalled" = yes ] && kill -0 "$step" 2>/dev/null || break
        signalled=no # the signal ended only the waiting
    done
    if [ "$signalled" = yes ]; then # or the step ended just then, and this is its exit code
        wait "$step" 2>/dev/null
        last=$?
        [ "$last" -eq 127 ] || code=$last
    fi
    if [ "$code" -eq 75 ]; then
        echo "job $SLURM_JOB_ID: stopped and saved; it is requeued and continues from there"
        scontrol requeue "$SLURM_JOB_ID" || echo "error: requeueing failed; submit the same command again" >&2
    elif [ "$code" -ne 0 ]; then
        echo "job $SLURM_JOB_ID: ended with code $code, not requeued; the reason stands above and in the run's logs" >&2
    fi
    exit "$code"
}
