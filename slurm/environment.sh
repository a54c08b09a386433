# Sourced by the batch files, with `root`, the folder of the code. Sets `python`, and what srun and Python need.

# The code of this folder, also where the environment has another checkout installed. submit.py writes cluster.sh.
export PYTHONPATH=$root/src${PYTHONPATH:+:$PYTHONPATH}
[[ ! -e $root/slurm/cluster.sh ]] || source "$root/slurm/cluster.sh"
python=$root/.venv/bin/python
# Without `make install`: the environment that was active at submission (conda), which sbatch passes on.
[[ -x $python ]] || python=$(command -v python3)
if ! "$python" -c 'import tencrop'; then
    echo "error: $python does not have the packages; run 'make install' in $root, or submit with an environment" \
        "activated that has them" >&2
    exit 2
fi
# Only in a snapshot of submit.py: ends the job if torch or another package was upgraded while it waited.
[[ ! -e $root/packages.json ]] || "$python" -m tencrop.commands.check_packages "$root/packages.json" || exit 2
# Since 22.05, srun ignores the job's --cpus-per-task.
[[ -z ${SLURM_CPUS_PER_TASK:-} ]] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
export PYTHONUNBUFFERED=1
echo "job $SLURM_JOB_ID on $SLURM_JOB_NODELIST, start $((${SLURM_RESTART_COUNT:-0} + 1)), $(date --iso-8601=seconds)"
