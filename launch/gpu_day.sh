#!/usr/bin/env bash
# Figures of one GPU in one call of at most 25 minutes, into OUT (or $OUT):
#   bash launch/gpu_day.sh --photographs=imagenette96.zip --out=OUT
#   bash launch/gpu_day.sh --debug --out=OUT    # all of it in small, on a CPU
# launch/gpu_day.py names its parts. It needs jax, flax, optax and Pillow;
# where the machine has no ml_collections, let it travel with the tree:
#   pip install --no-deps --target=.packages ml_collections
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD:$PWD/.packages${PYTHONPATH:+:$PYTHONPATH}"
exec python3 launch/gpu_day.py "$@"
