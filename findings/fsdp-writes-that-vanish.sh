#!/usr/bin/env bash
# torch 2.13.0: `weight[0, 0] = 0` on a weight that FSDP2 (`fully_shard`) shards over two processes does
# nothing, without an error. `weight.mul_(0)` works, and an index tensor raises.
#
# One would expect a write to arrive or to be refused. Seen here, with two processes on a CPU, on a 4 x 4
# weight of ones, by how many ones are left in the whole weight afterwards:
#   weight[0, 0] = 0            16, no error       with one process: 15
#   weight[0].zero_()           16, no error       with one process: 12
#   weight.view(-1)[0] = 0      16, no error       with one process: 15
#   weight.data[0, 0] = 0       16, no error       with one process: 15
#   weight.mul_(0)               0
#   weight[rows, columns] = 0    RuntimeError
# The write goes to a copy that was gathered for it. It works with one process, so a test on one machine
# passes. Write to `weight.to_local()` at the places of this process.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check "torch==2.13.0" "numpy>=2"

cat >"$folder/look.py" <<'PY'
import sys
import warnings

import torch
import torch.distributed as distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

warnings.simplefilter("ignore")
processes, rank, store = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
distributed.init_process_group(
    "gloo", init_method=f"file://{store}", rank=rank, world_size=processes
)
layer = torch.nn.Linear(4, 4, bias=False)
torch.nn.init.ones_(layer.weight)
fully_shard(layer, mesh=init_device_mesh("cpu", (processes,)))
weight = layer.weight


def single() -> None:
    weight[0, 0] = 0


def row() -> None:
    weight[0].zero_()


def flat() -> None:
    weight.view(-1)[0] = 0


def data() -> None:
    weight.data[0, 0] = 0


def scaled() -> None:
    weight.mul_(0)


def indexed() -> None:
    weight[torch.tensor([0]), torch.tensor([0])] = 0


LEFT = {1: [15, 12, 15, 15, 0, None], 2: [16, 16, 16, 16, 0, None]}
seen = []
with torch.no_grad():
    for write in (single, row, flat, data, scaled, indexed):
        weight.fill_(1)
        try:
            write()
            seen.append(int((weight.full_tensor() != 0).sum()))
        except RuntimeError:
            seen.append(None)
if rank == 0:
    print("torch", torch.__version__, "processes", processes, "ones left", seen)
assert seen == LEFT[processes], seen
distributed.destroy_process_group()
PY
export OMP_NUM_THREADS=1
"$folder/env/bin/python" "$folder/look.py" 1 0 "$folder/one"
"$folder/env/bin/python" "$folder/look.py" 2 0 "$folder/two" &
first=$!
"$folder/env/bin/python" "$folder/look.py" 2 1 "$folder/two"
wait "$first"
echo "as described"
