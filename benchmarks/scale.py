"""What scoring and a grid cost at published shapes, from the plan; fills docs/scale.md's tables.

Nothing is measured here: shapes are read, rates and prices are given.

    python benchmarks/scale.py [--tflops 300] [--memory 80] [--price 3]
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from math import ceil
from pathlib import Path

from resect.attribution.estimate import ASSUMED_BUS
from resect.attribution.plan import GIB, Shape, Work, plan, shape_of, streamed
from resect.machine.memory import Free
from resect.model.shapes import SHAPES, empty_model
from resect.runs.speed import Assumed

EXAMPLES, LENGTH = 824, 256
# A grid: cells, prompts of each, tokens of a reply, replies at a time here and on a server.
CELLS, PROMPTS, REPLY, BATCH, SERVED = 200, 500, 128, 64, 256
PAGE = Path(__file__).parents[1] / "docs" / "scale.md"
BEGIN, END = "<!-- {}: begin -->\n", "<!-- {}: end -->"


def rows(options: argparse.Namespace) -> dict[str, list[str]]:
    """Return the lines of both tables."""
    tokens = EXAMPLES * LENGTH
    work = Work(tokens, tokens // 2, 8192, LENGTH, keep=1e-3)
    host = Free(device=options.memory * GIB, host=options.host * GIB)
    lines = [
        "| shape | prunable | weights GiB | devices | how | GiB a device | min | $ | "
        "scores GB, at most | checkpoint GB | `--stream`: GiB | scratch GiB | min |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    grid = [
        "| shape | devices | start of a job, min | cell, min | grid, h | $ | served cell, min | "
        "grid, h | $ |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in SHAPES:
        model = empty_model(name)
        shape = shape_of(model)
        count, planned = 1, plan(shape, work, host)
        while not planned.fits and count < 64:
            count *= 2
            # One model spread over several devices, one of which works at a time.
            planned = plan(shape, work, replace(host, device=count * host.device))
        seconds = planned.operations / options.tflops / 1e12 + planned.moved / ASSUMED_BUS
        smallest = streamed(shape, work)
        slow = smallest.operations / options.tflops / 1e12 + smallest.moved / options.disk / 1e9
        manner = "sums on the device" if planned.accumulator == "device" else "sums on the CPU"
        if planned.layers is not None:
            manner += f", {planned.passes} passes"
        if planned.checkpoint:
            manner += ", recomputed"
        lines.append(
            f"| {name} | {shape.total / 1e9:.1f} B | {shape.parameters / GIB:.0f} | {count} | "
            f"{manner} | {planned.device / count / GIB:.0f} | {seconds / 60:.1f} | "
            f"{count * seconds / 3600 * options.price:.2f} | {planned.sparse / 1e9:.2f} | "
            f"{shape.parameters / 1e9:.0f} | {smallest.device / GIB:.1f} | "
            f"{smallest.disk / GIB:.0f} | {slow / 60:.1f} |"
        )
        grid.append(_grid_row(name, shape, model.config.num_hidden_layers, count, options))
    return {"scale": lines, "grid": grid}


def _grid_row(name: str, shape: Shape, layers: int, count: int, options: argparse.Namespace) -> str:
    """Return what a grid costs whose replies come from memory, and from a server of the cut.

    As `resect.runs.forecast`: each token of a batch reads all weights once, here from one device at
    a time and with the time that it takes to start a block; on a server from all devices at once.
    """
    assumed = Assumed()
    reading = shape.parameters / assumed.bandwidth
    forward = 2.0 * shape.active * PROMPTS * LENGTH / options.tflops / 1e12
    start = shape.parameters / options.disk / 1e9
    asking = forward + ceil(PROMPTS / BATCH) * REPLY * max(reading, assumed.step * layers)
    # A server that serves folders starts anew for each cut.
    served = start + (forward + ceil(PROMPTS / SERVED) * REPLY * reading) / count
    hours = [CELLS * seconds / 3600 for seconds in (asking, served)]
    money = [count * hour * options.price for hour in hours]
    return (
        f"| {name} | {count} | {start / 60:.1f} | {asking / 60:.2f} | {hours[0]:.1f} | "
        f"{money[0]:,.0f} | {served / 60:.2f} | {hours[1]:.1f} | {money[1]:,.0f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tflops", type=float, default=300)
    parser.add_argument("--memory", type=float, default=80, help="GiB a device")
    parser.add_argument("--host", type=float, default=512, help="GiB of CPU memory")
    parser.add_argument("--disk", type=float, default=2, help="GB/s read from disk")
    parser.add_argument("--price", type=float, default=3, help="$ a device-hour")
    parser.add_argument("--write", action="store_true", help="fill the page")
    options = parser.parse_args()
    for name, lines in rows(options).items():
        table = "\n".join(lines)
        print(table, end="\n\n")
        if options.write:
            begin, end = BEGIN.format(name), END.format(name)
            head, tail = PAGE.read_text(encoding="utf-8").split(begin)
            text = head + begin + table + "\n" + end + tail.split(end)[1]
            PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
