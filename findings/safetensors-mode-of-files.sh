#!/usr/bin/env bash
# safetensors 0.8.0: `save_file` leaves a file that only its owner can read, whatever the umask says and whoever
# could read the file before; if the path is a symbolic link, the link goes and the file it points to stays as
# it was. 0.7.0 does neither.
#
# One would expect what open(path, "wb") does, and numpy.save: a mode by the umask or that of the file which is
# there, and the target of a link written. Since 0.8.0 a temporary file is made beside the path and renamed, and
# keeps its mode. Seen here, with a umask of 022:
#                                     numpy.save    0.7.0          0.8.0
#   a new file                        0644          0644           0600
#   over a file with mode 0664        0664          0664           0600
#   over a link to big/weights        big written   big written    a file instead of the link, big as before
#   over a file with two names        both new      both new       the other name has the old tensors
# Who saves sees no difference; a colleague, or a server under another user, has config.json and may not read
# the weights, and weights that a link sends to a large disk fill the small one. Set the mode after saving,
# and resolve the path before.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/look.py" <<'PY'
import os
import pathlib
import sys
from collections.abc import Callable

import numpy
import safetensors
from safetensors.numpy import load_file, save_file

print("safetensors", safetensors.__version__)
kind, folder = sys.argv[1], pathlib.Path(sys.argv[2])
folder.mkdir()
os.umask(0o022)


def save_numpy(values: numpy.ndarray, path: pathlib.Path) -> None:
    with open(path, "wb") as file:
        numpy.save(file, values)


def save_tensors(values: numpy.ndarray, path: pathlib.Path) -> None:
    save_file({"weight": values}, path)


def mode(path: pathlib.Path) -> str:
    return f"{path.stat().st_mode & 0o777:04o}"


def look(name: str, save: Callable, load: Callable) -> tuple:
    old, new = numpy.zeros(3, numpy.float32), numpy.ones(3, numpy.float32)
    place = folder / name
    (place / "big").mkdir(parents=True)
    plain, link, target = place / "plain", place / "link", place / "big" / "weights"
    save(old, plain)
    fresh = mode(plain)
    plain.chmod(0o664)
    os.link(plain, place / "other")
    save(new, plain)
    save(old, target)
    link.symlink_to(target)
    save(new, link)
    assert load(plain)[0] == load(link)[0] == 1
    written = (bool(load(path)[0] == 1) for path in (target, place / "other"))
    return fresh, mode(plain), link.is_symlink(), *written


usual = ("0644", "0664", True, True, True)
found = look("numpy", save_numpy, numpy.load)
print("  numpy.save", found)
assert found == usual, found
found = look("tensors", save_tensors, lambda path: load_file(path)["weight"])
print("  save_file ", found)
assert found == (usual if kind == "before" else ("0600", "0600", False, False, False)), found
PY

for kind in before after; do
    python3 -m venv "$folder/$kind"
    version=$([ "$kind" = before ] && echo 0.7.0 || echo 0.8.0)
    "$folder/$kind/bin/python" -m pip install --quiet --disable-pip-version-check \
        "safetensors==$version" "numpy>=2"
    "$folder/$kind/bin/python" "$folder/look.py" "$kind" "$folder/files-$kind"
done
echo "as described"
