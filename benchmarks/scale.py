"""What scoring costs at published shapes, from the plan; fills the tables of docs/scale.md.

Nothing is measured here: shapes are read, rates and prices are given.

    python benchmarks/scale.py [--tflops 300] [--memory 80] [--price 3]
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from resect.model.plan import GIB, Free, Work, plan, shape_of, streamed
from resect.model.room import ASSUMED_BUS, SHAPES, empty_model

EXAMPLES, LENGTH = 824, 256
PAGE = Path(__file__).parents[1] / "docs" / "scale.md"
BEGIN, END = "<!-- scale: begin -->\n", "<!-- scale: end -->"


def rows(options: argparse.Namespace) -> list[str]:
    tokens = EXAMPLES * LENGTH
    work = Work(tokens, tokens // 2, 8192, LENGTH, keep=1e-3)
    host = Free(device=options.memory * GIB, host=options.host * GIB)
    lines = [
        "| shape | prunable | weights GiB | devices | how | GiB a device | min | $ | "
        "scores GB, at most | checkpoint GB | `--stream`: GiB | scratch GiB | min |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name in SHAPES:
        shape = shape_of(empty_model(name))
        count, found = 1, plan(shape, work, host)
        while not found.fits and count < 64:
            count *= 2
            # One model spread over several devices, one of which works at a time.
            found = plan(shape, work, replace(host, device=count * host.device))
        seconds = found.operations / options.tflops / 1e12 + found.moved / ASSUMED_BUS
        least = streamed(shape, work)
        slow = least.operations / options.tflops / 1e12 + least.moved / options.disk / 1e9
        place = "sums on the device" if found.accumulator == "device" else "sums on the CPU"
        if found.layers is not None:
            place += f", {found.passes} passes"
        if found.checkpoint:
            place += ", recomputed"
        lines.append(
            f"| {name} | {shape.total / 1e9:.1f} B | {shape.parameters / GIB:.0f} | {count} | "
            f"{place} | {found.device / count / GIB:.0f} | {seconds / 60:.1f} | "
            f"{count * seconds / 3600 * options.price:.2f} | {found.sparse / 1e9:.2f} | "
            f"{shape.parameters / 1e9:.0f} | {least.device / GIB:.1f} | "
            f"{least.disk / GIB:.0f} | {slow / 60:.1f} |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tflops", type=float, default=300)
    parser.add_argument("--memory", type=float, default=80, help="GiB a device")
    parser.add_argument("--host", type=float, default=512, help="GiB of CPU memory")
    parser.add_argument("--disk", type=float, default=2, help="GB/s read from disk")
    parser.add_argument("--price", type=float, default=3, help="$ a device-hour")
    parser.add_argument("--write", action="store_true", help="fill the page")
    options = parser.parse_args()
    table = "\n".join(rows(options))
    print(table)
    if options.write:
        text = PAGE.read_text(encoding="utf-8")
        head, rest = text.split(BEGIN)
        PAGE.write_text(head + BEGIN + table + "\n" + END + rest.split(END)[1], encoding="utf-8")


if __name__ == "__main__":
    main()
