#!/bin/bash
# Pretraining on many nodes, requeued until it is complete:
#   sbatch --nodes 24 training/accelerate/slurm.sh --config nano_1.2b
# Run it in the root of the checkout, or anywhere if the package is installed (MODULE=modeling_pleias.training.pretrain).
#
# Slurm starts one process per GPU and sets the rank of each; they meet at MASTER_ADDR, as under torchrun. There is
# deliberately no launcher between Slurm and the processes: torchrun's agent, which `accelerate launch` runs, exits with
# status 1 whatever the status of its processes, and kills them 30 s after it is stopped itself. Here the status of a
# process, 75 for "saved, start me again", is preserved, and --signal determines the time for a save.
#SBATCH --job-name=pleias
#SBATCH --nodes=24
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8         # one process per GPU
#SBATCH --cpus-per-task=12          # the loop, the loader's thread, NCCL's threads and a reserve
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@600           # to the processes, 600 s before the end: finish the step, save, exit with 75
#SBATCH --requeue
#SBATCH --open-mode=append          # a requeued job appends to the same log
#SBATCH --output=%x-%j.log
set -u

# --signal without B: signals the processes of the steps. The shell of a preempted or cancelled job also gets SIGTERM, but
# must stay alive to read their status.
trap '' TERM

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))      # two jobs with the same first node must not use the same port
WORLD_SIZE=$SLURM_NTASKS
OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK               # by default every process would use all cores of the node
TORCH_NCCL_ASYNC_ERROR_HANDLING=1                  # if a node fails the other processes end instead of waiting
export MASTER_ADDR MASTER_PORT WORLD_SIZE OMP_NUM_THREADS TORCH_NCCL_ASYNC_ERROR_HANDLING

# --kill-on-bad-exit=0: if one process stops before the others it must not end them during a save. (Processes that lost a
# partner end by NCCL's timeout.) The rank is known only inside a task, hence the shell.
srun --kill-on-bad-exit=0 --label bash -c '
    export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID LOCAL_WORLD_SIZE=$SLURM_NTASKS_PER_NODE
    exec python -m '"${MODULE:-training.pretrain}"' "$@"' pretrain "$@"
status=$?

# srun returns the highest status of its processes. 75: everything is saved. Anything else, such as a crash or bad settings,
# would happen again: the job ends, and the same command resumes from the latest checkpoint after a fix. To end a run
# permanently: scancel --signal=KILL.
if [ "$status" -eq 75 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
