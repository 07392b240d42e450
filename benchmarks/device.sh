#!/bin/sh
# Everything that a GPU is measured and checked by, in eight minutes at most; see benchmarks/device.py.
# It takes the Python of .venv, or the one that PYTHON names. Without a GPU it changes nothing.
cd "$(dirname "$0")/.." || exit 2
python=${PYTHON:-.venv/bin/python}
PYTHONPATH=src${PYTHONPATH:+:$PYTHONPATH} exec timeout 480 "$python" benchmarks/device.py "$@"
