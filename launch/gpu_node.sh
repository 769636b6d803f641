#!/usr/bin/env bash
# All GPUs of this machine, one process:
#   bash launch/gpu_node.sh --config=configs/esvit.py:swin_tiny --workdir=runs/a
set -euo pipefail
cd "$(dirname "$0")/.."
# Leave a little memory to the driver, take the rest at once.
export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.95}
exec python -m main "$@"
