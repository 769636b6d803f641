#!/usr/bin/env bash
# All hosts of a TPU pod. Needs gcloud, and this repository on no host yet:
#   bash launch/tpu_pod.sh NAME ZONE --config=configs/esvit.py:swin_tiny \
#       --workdir=/mnt/bucket/runs/a
# The run directory must be one that all hosts see (a bucket mounted with
# gcsfuse, Filestore). Run it again after a preemption: it goes on.
set -euo pipefail
if [ $# -lt 3 ]; then
  sed -n '2,7p' "$0" >&2
  exit 2
fi
name=$1 zone=$2
shift 2
cd "$(dirname "$0")/.."
archive=$(mktemp --suffix=.tar.gz)
trap 'rm -f "$archive"' EXIT
git archive --format=tar.gz -o "$archive" HEAD
gcloud compute tpus tpu-vm scp "$archive" "$name:~/esvit_jax.tar.gz" \
  --zone="$zone" --worker=all
gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="
  set -e
  mkdir -p ~/esvit_jax && tar -xzf ~/esvit_jax.tar.gz -C ~/esvit_jax
  cd ~/esvit_jax
  [ -d .venv ] || python3 -m venv .venv
  . .venv/bin/activate
  pip install --quiet -e '.[tpu]'
  python -m main --distributed $(printf '%q ' "$@")"
