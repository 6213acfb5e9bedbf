#!/bin/bash
# Pretraining on many nodes, requeued until it is complete:
#   sbatch --nodes 24 training/accelerate/slurm.sh --config nano_1.2b
# From the root of the checkout, or anywhere once the package is installed (then MODULE=modeling_pleias.training.pretrain).
#
# Slurm starts one process a GPU and says to each who it is; they meet at MASTER_ADDR, as torchrun's would. There is no
# launcher between Slurm and them, on purpose: torchrun's agent, which `accelerate launch` runs, ends with status 1
# whatever its processes end with, and kills them 30 s after it has itself been told to stop. Here a process's own
# status, 75 for "saved, start me again", comes through, and a save has as long as --signal leaves it.
#SBATCH --job-name=pleias
#SBATCH --nodes=24
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8         # one process a GPU
#SBATCH --cpus-per-task=12          # the loop, the loader's thread, NCCL's and a rest
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@600           # to the processes, 600 s before the end: finish the step, save, end with 75
#SBATCH --requeue
#SBATCH --open-mode=append          # a requeued job goes on in the same log
#SBATCH --output=%x-%j.log
set -u

# --signal without B: goes to the steps' processes. A preempted or cancelled job's shell is sent SIGTERM, too: it must
# stay to read their status.
trap '' TERM

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))      # two jobs that share a first node must not share a port
WORLD_SIZE=$SLURM_NTASKS
OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK               # Accelerate would leave every process all cores of the node
TORCH_NCCL_ASYNC_ERROR_HANDLING=1                  # when a node dies the others end instead of waiting for it
export MASTER_ADDR MASTER_PORT WORLD_SIZE OMP_NUM_THREADS TORCH_NCCL_ASYNC_ERROR_HANDLING

# --kill-on-bad-exit=0: when one process is told to stop before the others it must not take them along in mid-save.
# (Processes that have lost a partner end by NCCL's time-out.) The rank is known only inside a task, hence the shell.
srun --kill-on-bad-exit=0 --label bash -c '
    export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID LOCAL_WORLD_SIZE=$SLURM_NTASKS_PER_NODE
    exec python -m '"${MODULE:-training.pretrain}"' "$@"' pretrain "$@"
status=$?

# srun gives the highest status of its processes. 75: all is saved. Anything else, a crash or bad settings, would only
# happen again: the job stays down, and the same command goes on from the last checkpoint once it is mended. To end a
# run for good: scancel --signal=KILL.
if [ "$status" -eq 75 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
