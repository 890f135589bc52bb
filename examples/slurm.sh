#!/usr/bin/env bash
# A cohort on a SLURM cluster, in one of two ways. Type it on the login node, in a folder on a file system that all nodes
# share (see docs/cluster.md):
#
#     bash slurm.sh array slides/ 16     # plain job arrays: each job takes every 16th slide, and needs no Dask
#     bash slurm.sh dask slides/ 8       # a Dask cluster of 8 GPU workers within one job: slides go to whoever is free
#
# Adapt what is asked of SLURM to your cluster (partition, account, time). What is killed is taken up again by the same
# command: finished slides are skipped. MODEL=uni WEIGHTS=/shared/uni.bin bash slurm.sh ... takes another encoder.
set -euo pipefail

how="${1:?array or dask}"; slides="${2:?the folder of slides}"; count="${3:-8}"
encoder="--model ${MODEL:-morphology}${WEIGHTS:+ --weights $(printf %q "$WEIGHTS")}"
# Memory by core: a node may get several tasks. How many tasks is always said: SLURM wants it beside GPUs of each.
cpu="--cpus-per-task=8 --mem-per-cpu=4G --time=12:00:00"
gpu="$cpu --gpus-per-task=1"
mkdir -p logs

array() {
    # Each stage waits until all jobs of the one before have ended, however: slides that failed are left out and named.
    local index='$SLURM_ARRAY_TASK_ID' job
    local spread="--parsable --ntasks=1 --array=1-$count --output=logs/%x-%A-%a.txt"
    job=$(sbatch $spread $cpu --job-name=tile --wrap "wsimil tile '$slides' --shard $index/$count")
    job=$(sbatch $spread $gpu --job-name=extract --dependency="afterany:$job" \
        --wrap "wsimil extract $encoder --shard $index/$count")
    job=$(sbatch $spread $cpu --job-name=distances --dependency="afterany:$job" \
        --wrap "wsimil distances --shard $index/$count")
    sbatch $gpu --ntasks=1 --job-name=train --output=logs/train-%j.txt --dependency="afterany:$job" \
        --wrap "wsimil train --bags feats/"
}

cluster() {
    # One job: its first node runs the scheduler and the commands, every task a worker. Each worker has one GPU and says
    # so. The file of the scheduler, on the shared disk, tells everybody its address. (srun is told the cores anew: it no
    # longer takes them over from sbatch.)
    sbatch $gpu --job-name=wsimil --ntasks="$count" --output=logs/dask-%j.txt <<JOB
#!/usr/bin/env bash
set -uo pipefail
scheduler="\$PWD/scheduler-\$SLURM_JOB_ID.json"
dask scheduler --scheduler-file "\$scheduler" --port 0 --no-dashboard &
until [ -s "\$scheduler" ]; do kill -0 \$! || exit 1; sleep 1; done
srun --cpus-per-task=8 dask worker --scheduler-file "\$scheduler" --nworkers 1 --nthreads 8 --memory-limit 30GiB \
    --local-directory "\${TMPDIR:-/tmp}" --resources "GPU=1" --no-dashboard &
wsimil tile '$slides' --scheduler "\$scheduler"
wsimil extract $encoder --scheduler "\$scheduler"
wsimil distances --scheduler "\$scheduler"
kill %2 %1
rm -f "\$scheduler"
wsimil train --bags feats/
JOB
}

case "$how" in
    array) array ;;
    dask) cluster ;;
    *) echo "slurm.sh: $how: give array or dask" >&2; exit 2 ;;
esac
