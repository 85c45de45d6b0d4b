#!/bin/bash
# Training on a Cloud TPU slice of spot VMs: asks for it, waits, installs on all its hosts, trains.
# Run it again after a preemption: the run goes on from its checkpoint in the bucket.
#   BUCKET=my-bucket ZONE=us-west4-a deploy/tpu_vm.sh
set -euo pipefail
: "${BUCKET:?name a bucket of Cloud Storage}" "${ZONE:?name a zone that has this TPU}"
NAME=${NAME:-concertormer}
TYPE=${TYPE:-v5litepod-16}
RUNTIME=${RUNTIME:-v2-alpha-tpuv5-lite}

state() {
    gcloud compute tpus queued-resources describe "$NAME" --zone="$ZONE" --format="value(state.state)" 2>/dev/null || true
}
on_all_hosts() {
    gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --worker=all --command="$1"
}

case "$(state)" in
ACTIVE) ;;
"" | SUSPENDED | FAILED) # none yet, or what is left of one that was taken away
    gcloud compute tpus queued-resources delete "$NAME" --zone="$ZONE" --force --quiet 2>/dev/null || true
    # --autocheckpoint-enabled, which only the alpha command has, sends SIGTERM to the run before maintenance.
    gcloud alpha compute tpus queued-resources create "$NAME" --node-id="$NAME" --zone="$ZONE" \
        --accelerator-type="$TYPE" --runtime-version="$RUNTIME" --spot --autocheckpoint-enabled
    ;;
esac
while now=$(state) && [ "$now" != ACTIVE ]; do
    case "$now" in
    SUSPENDED | FAILED)
        echo "error: $NAME is $now; run this again to ask anew, or see gcloud compute tpus queued-resources" >&2
        exit 1
        ;;
    esac
    echo "$(date +%H:%M) $now"
    sleep 60
done

# The hosts' own Python may be older than 3.11, so uv brings one.
python -m pip wheel --no-deps --wheel-dir dist .
gcloud compute tpus tpu-vm scp --zone="$ZONE" --worker=all dist/concertormer_jax-*.whl "$NAME":
on_all_hosts 'curl -LsSf https://astral.sh/uv/install.sh | sh && ~/.local/bin/uv venv --clear --python 3.12 run &&
    ~/.local/bin/uv pip install --python run "$(ls concertormer_jax-*.whl)[tpu]"'
on_all_hosts "run/bin/concertormer train --distributed --config=gopro --workdir=gs://$BUCKET/gopro \
    --config.data.data_dir=gs://$BUCKET/tensorflow_datasets"
