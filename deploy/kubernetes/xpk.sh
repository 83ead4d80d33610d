#!/usr/bin/env bash
# Trains on v5e or v6e slices of a cluster that XPK made (`xpk cluster create`); XPK writes the JobSet.
#
#     PROJECT=my-project ZONE=us-west4-a CLUSTER=my-cluster BUCKET=my-bucket TYPE=v5litepod-256 \
#       IMAGE=us-docker.pkg.dev/my-project/clipjax/clipjax:tpu deploy/kubernetes/xpk.sh
#     TYPE=v6e-256 SLICES=2 ... deploy/kubernetes/xpk.sh
#     ... deploy/kubernetes/xpk.sh --dry-run        # prints what would be done; arguments go to xpk
#
# When one host dies, clipjax ends on the others with 1, which XPK would take for the end of the job; hence
# --restart-on-exit-codes=1.
set -euo pipefail

: "${PROJECT:?}" "${ZONE:?}" "${CLUSTER:?}" "${BUCKET:?}" "${IMAGE:?}"

exec xpk workload create \
  --project="$PROJECT" --zone="$ZONE" --cluster="$CLUSTER" \
  --workload="${RUN:-siglip-b16}" \
  --tpu-type="${TYPE:-v5litepod-256}" --num-slices="${SLICES:-1}" \
  --docker-image="$IMAGE" \
  --max-restarts=100 --restart-on-exit-codes=1 --termination-grace-period-seconds=120 \
  --command="cd /clipjax && exec preemptible clipjax train \
    --config=experiments/siglip_b16.py \
    --workdir=gs://$BUCKET/runs/${RUN:-siglip-b16} \
    --config.data.train.path=gs://$BUCKET/shards \
    --config.tokenizer.path=gs://$BUCKET/tokenizer.model \
    --start_timeout=1800" \
  "$@"
