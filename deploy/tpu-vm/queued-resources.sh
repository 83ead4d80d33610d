#!/usr/bin/env bash
# Trains on TPU VMs: asks for them as a queued resource, installs clipjax, mounts the data with gcsfuse, and trains.
#
#     export NAME=clipjax ZONE=us-east5-b TYPE=v6e-64 BUCKET=my-bucket
#     deploy/tpu-vm/queued-resources.sh run                       # all of the steps below; spot VMs: again when preempted
#     deploy/tpu-vm/queued-resources.sh create|setup|train|delete # one of them
#     DRY_RUN=1 deploy/tpu-vm/queued-resources.sh run             # prints the commands
#
# TYPE: v5litepod-256, v6e-64, ... SLICES=2: several slices of it. SPOT=0: not spot VMs. PROJECT: gcloud's default.
# RUN: the folder of the run, gs://$BUCKET/runs/$RUN. CACHE_MB: what gcsfuse may keep of the data on each host's disk.
set -euo pipefail

case ${1:-} in
  create | setup | train | delete | run) ;;
  *) sed -n '2,10s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2 && exit 2 ;;
esac
: "${NAME:?}" "${ZONE:?}" "${TYPE:?}" "${BUCKET:?}"
SLICES=${SLICES:-1} SPOT=${SPOT:-1} RUN=${RUN:-siglip-b16} CACHE_MB=${CACHE_MB:-20000} DRY_RUN=${DRY_RUN:-}
POLL_SECONDS=${POLL_SECONDS:-30}
WHERE=(--zone="$ZONE" --project="${PROJECT:-$(gcloud config get-value project)}")
FOLDER=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

case $TYPE in
  v5litepod-*) RUNTIME=v2-alpha-tpuv5-lite ;;
  v6e-*) RUNTIME=v2-alpha-tpuv6e ;;
  *) echo "TYPE=$TYPE: expected v5litepod-N or v6e-N" >&2 && exit 2 ;;
esac

# What each host does once. Data are read through the mount: -o ro and caches that never expire, because nobody writes
# to them meanwhile (ttl-secs=-1); --implicit-dirs, because objects need no folders; files that are read are kept on
# disk up to CACHE_MB, also those that are read in parts (ArrayRecord, Parquet). Huge pages make libtpu start faster.
SETUP="set -e
sudo sh -c 'echo always > /sys/kernel/mm/transparent_hugepage/enabled'
command -v gcsfuse || {
  curl -fsS https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee /usr/share/keyrings/cloud.google.asc > /dev/null
  echo \"deb [signed-by=/usr/share/keyrings/cloud.google.asc] https://packages.cloud.google.com/apt gcsfuse-\$(lsb_release -cs) main\" |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list > /dev/null
  sudo apt-get update -qq && sudo apt-get install -y -qq gcsfuse
}
sudo mkdir -p /mnt/data && sudo chown \$USER /mnt/data
mountpoint -q /mnt/data || gcsfuse -o ro --implicit-dirs \
  --metadata-cache-ttl-secs=-1 --stat-cache-max-size-mb=-1 --type-cache-max-size-mb=-1 --kernel-list-cache-ttl-secs=-1 \
  --cache-dir=/tmp/gcsfuse --file-cache-max-size-mb=$CACHE_MB \
  --file-cache-cache-file-for-range-read --file-cache-enable-parallel-downloads \
  $BUCKET /mnt/data
command -v uv || python3 -m pip install --quiet --user uv
export PATH=\$HOME/.local/bin:\$PATH
mkdir -p clipjax && tar -xzf clipjax.tar.gz -C clipjax && cd clipjax
uv venv --quiet --allow-existing --python 3.12 && uv pip install --quiet '.[tpu,gcs]'"

# Exits with 143 instead of 0 when it was preempted: deploy/docker/preemptible.
TRAIN="cd clipjax && . .venv/bin/activate && sh deploy/docker/preemptible clipjax train \
  --config=experiments/siglip_b16.py \
  --workdir=gs://$BUCKET/runs/$RUN \
  --config.data.train.path=/mnt/data/shards \
  --config.tokenizer.path=/mnt/data/tokenizer.model"

do_it() {
  local line
  if [ -n "$DRY_RUN" ]; then printf -v line '%q ' "$@" && echo "$line"; else "$@"; fi
}

nodes() {
  if [ "$SLICES" -eq 1 ]; then echo "$NAME"; else seq -f "$NAME-%.0f" 0 $((SLICES - 1)); fi
}

state() { gcloud compute tpus queued-resources describe "$NAME" "${WHERE[@]}" --format='value(state.state)'; }

create() {
  local what=(--node-id="$NAME") spot=()
  [ "$SLICES" -eq 1 ] || what=(--node-count="$SLICES" --node-prefix="$NAME")
  [ "$SPOT" -eq 0 ] || spot=(--spot)
  do_it gcloud compute tpus queued-resources create "$NAME" "${WHERE[@]}" \
    --accelerator-type="$TYPE" --runtime-version="$RUNTIME" "${what[@]}" "${spot[@]}" --scopes=cloud-platform || return 1
  [ -z "$DRY_RUN" ] || return 0
  local now
  while now=$(state); do
    case $now in
      ACTIVE) return 0 ;;
      FAILED | SUSPENDING | SUSPENDED) echo "Queued resource $NAME is $now" >&2 && return 1 ;;
      *) echo "Queued resource $NAME is $now" && sleep "$POLL_SECONDS" ;;
    esac
  done
  return 1
}

# On every host of every slice at once; fails if one of them does.
on_all() {
  local node pids=() failed=0
  for node in $(nodes); do
    do_it gcloud compute tpus tpu-vm ssh "$node" "${WHERE[@]}" --worker=all --command="$1" &
    pids+=($!)
  done
  for pid in "${pids[@]}"; do wait "$pid" || failed=1; done
  return "$failed"
}

setup() {
  local node
  do_it tar -czf /tmp/clipjax.tar.gz -C "$FOLDER" \
    clipjax data_pipelines experiments deploy/docker pyproject.toml setup.py README.md LICENSE || return 1
  for node in $(nodes); do
    do_it gcloud compute tpus tpu-vm scp /tmp/clipjax.tar.gz "$node:" "${WHERE[@]}" --worker=all || return 1
  done
  on_all "$SETUP"
}

train() { on_all "$TRAIN"; }

delete() { do_it gcloud compute tpus queued-resources delete "$NAME" "${WHERE[@]}" --force --quiet; }

# Preempted VMs are gone: their queued resource is deleted, and another one continues the run. VMs that are still there
# have an error to show.
run() {
  local try
  for try in $(seq "${TRIES:-100}"); do
    echo "Try $try"
    if create && setup && train; then
      delete
      return 0
    fi
    sleep "$POLL_SECONDS" # until a preemption shows in the state
    if [ "$(state)" = ACTIVE ]; then
      echo "$NAME failed, and its VMs were not preempted; they are kept. See the error above, then: $0 train" >&2
      return 1
    fi
    delete || true
  done
  return 1
}

"$1"
