"""Kill commands again and again, look at what they left, and let them go on.

    python tests/reliability/kill.py --kills 200

Each command runs in a fork of this process, which has imported everything and computed nothing, so
that a kill costs no import. Moments are drawn over the undisturbed duration; every third kill hits
a place instead: just before or after the n-th file gets its final name. After each kill every file
with a final name must be whole and have the content that an undisturbed run gives it; then the same
command goes on and must end with the same files, with no finished cell measured again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ |= {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}

import yaml

import tiny
from resect.records import Judgement, Reply

SIGNALS = (signal.SIGKILL, signal.SIGINT, signal.SIGTERM)
# How the kills are shared out, in parts of ten.
TASKS = {"score": 2, "study": 3, "collect": 2, "prune": 1, "report": 2}
# What tells the time of the run is compared without it.
TIMED = {"manifest.json", "results.json", "report.html", "report.json", "report.md"}
STOPPED = 130
# What libraries import where they are first used: tables look for pandas, drawings for fonts.
LATE = (
    *("pandas", "pyarrow.compute", "pyarrow.pandas_compat", "pyarrow.parquet", "rich.table"),
    *("fontTools.subset", "lxml.etree", "matplotlib.backends.backend_pdf"),
    "matplotlib.backends.backend_svg",
)


@dataclass(frozen=True)
class Task:
    """A command and what it is run on."""

    name: str
    words: Callable[[Path], list[str]]
    again: tuple[str, ...] = ()
    prepare: Callable[[Path], None] = lambda folder: None


@dataclass
class Reference:
    """What an undisturbed run leaves, how long it takes and how many files it names."""

    files: dict[str, bytes]
    seconds: float
    names: int


@dataclass(frozen=True)
class Kill:
    """When a command is killed: after some seconds, or beside the n-th final name."""

    sent: signal.Signals
    delay: float = 0.0
    place: int = 0
    after: bool = False


def even(reply: Reply) -> Judgement:
    """Accept replies of an even number of letters: a judge that needs no competent model."""
    hit = len(reply.text.replace(" ", "")) % 2 == 0
    return Judgement("exact", "even/letters", float(hit), "complied", reply.text)


def warm() -> None:
    """Import what the commands import and put a judge in; nothing is computed."""
    import importlib
    import pkgutil

    import torch
    import transformers.models.llama.modeling_llama  # noqa: F401

    import resect
    from resect import files
    from resect.evaluation import collect, judges

    for module in pkgutil.walk_packages([str(Path(resect.__file__).parent)], prefix="resect."):
        if "integrations" not in module.name and "__main__" not in module.name:
            importlib.import_module(module.name)
    for name in LATE:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    torch.set_num_threads(1)
    # Read once: a commit made meanwhile would be in the files that come after it.
    files.provenance()
    judges.JUDGES["exact"] = lambda _: judges.each(lambda reply, asked: even(reply))
    collect.CHUNK = 2


def note(log: Path, *words: str) -> None:
    with log.open("a", encoding="utf-8") as file:
        file.write(" ".join(words) + "\n")


def noted(log: Path, word: str) -> list[str]:
    text = log.read_text(encoding="utf-8") if log.exists() else ""
    return [line.split()[-1] for line in text.splitlines() if line.split()[0] == word]


def watch(log: Path, kill: Kill | None) -> None:
    """In the child: write down cells and final names; end at the place that a kill names."""
    from resect.runs import measure as running

    plain, rename, count = running.measure, Path.replace, [0]

    def measure(cell: Any, masks: Any, subjects: Any) -> None:
        note(log, "begun", cell.key)
        plain(cell, masks, subjects)
        note(log, "done", cell.key)

    def replace(self: Path, target: Any) -> Path:
        count[0] += 1
        is_here = kill is not None and kill.place == count[0]
        if kill is not None and is_here and not kill.after:
            os.kill(os.getpid(), kill.sent)
        renamed = rename(self, target)
        note(log, "named", str(count[0]))
        if kill is not None and is_here:
            os.kill(os.getpid(), kill.sent)
        return renamed

    running.measure = measure
    Path.replace = replace  # type: ignore[method-assign,assignment]


def run(words: list[str], log: Path, kill: Kill | None = None) -> int:
    """Run a command in a fork; return its exit code, or minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            output = os.open(log.with_suffix(".out"), os.O_CREAT | os.O_APPEND | os.O_WRONLY)
            os.dup2(output, 1)
            os.dup2(output, 2)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            watch(log, kill)
            sys.argv = ["resect", *words]
            from resect.cli import main

            main()
        except SystemExit as end:
            code = int(end.code or 0)
        except BaseException:  # noqa: BLE001 (a child must not go on as its parent)
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    if kill is not None and not kill.place:
        time.sleep(kill.delay)
        os.kill(child, kill.sent)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def left(folder: Path) -> dict[str, bytes]:
    """Return what has its final name, by path; half-written siblings have not."""
    files = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and not any(
            p.startswith(".") and p.endswith(".part") for p in name.parts
        ):
            files[str(name)] = path.read_bytes()
    return files


def litter(folder: Path) -> list[str]:
    return [str(p.relative_to(folder)) for p in folder.rglob("*") if p.name.endswith(".part")]


def untimed(name: str, content: bytes) -> Any:
    """Return what is compared of a file that tells the time of its run."""
    if name.endswith(".json"):
        values = json.loads(content)
        drop = ("provenance", "finished", "seconds", "command", "rebuild", "citation")
        return {key: value for key, value in values.items() if key not in drop}
    text = content.decode("utf-8")
    assert not name.endswith(".html") or text.rstrip().endswith("</html>"), f"{name} ends early"
    return len(text.split("\n")) > 3


def rows(content: bytes) -> list[dict[str, Any]]:
    import io

    import pyarrow.parquet as pq

    table: list[dict[str, Any]] = pq.read_table(io.BytesIO(content)).to_pylist()
    return table


def check(name: str, content: bytes, reference: dict[str, bytes], *, final: bool) -> None:
    """Refuse a file that is not whole or says something else than undisturbed."""
    last = Path(name).name
    if name.endswith(".asked.parquet"):
        # Replies are stored before they are judged, and keep that name until they are.
        assert not final, f"{name} should be judged"
        asked, whole = rows(content), rows(reference[name.replace(".asked", "")])
        assert [r["text"] for r in asked] == [r["text"] for r in whole], f"{name} differs"
        assert asked == whole or all(r["judge"] is None for r in asked), f"{name} is half judged"
    elif name not in reference:
        # What an unfinished run keeps for the next: claims, and the chunks of a collection.
        assert not final, f"{name} should be gone"
        assert "claims" in name or ".parts" in name, f"unexpected {name}"
        text = content.decode("utf-8")
        for line in text.splitlines() if name.endswith(".jsonl") else [text]:
            json.loads(line)
    elif last == "metrics.jsonl":
        for line in content.decode("utf-8").splitlines():  # lines come as cells do, with their time
            json.loads(line)
    elif last in TIMED and content != reference[name]:
        assert untimed(name, content) == untimed(name, reference[name]), f"{name} differs"
    else:
        assert content == reference[name], f"{name} differs"


def study(folder: Path, zoo: Any) -> None:
    """Write a small configuration of a frontier."""
    values = {
        "name": "tiny",
        "models": {"aligned": str(zoo.stage("aligned"))},
        "data": {name: str(zoo.data(name)) for name in ("hazard", "preserve", "utility")},
        "targets": {"generation": {"data": "hazard", "skip": 3, "limit": 4}},
        "preserve": {"data": "preserve", "limit": 4},
        "attack": {"name": "prefill", "tokens": 3},
        "evaluation": {
            "probes": {"generation": "hazard", "utility": "utility"},
            "limit": 4,
            "max_new_tokens": 2,
        },
        "studies": {
            "frontier": {"fractions": [0.005, 0.01], "protected": [0.01], "scopes": ["tensor"]}
        },
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")


def prepared(base: Path) -> None:
    """Make models, data, scores, a mask and a whole run; the body of a child."""
    from resect.organism import Recipe, build

    zoo = build(seed=0, recipe=Recipe.tiny(), root=base / "zoo", stages=("aligned",))
    study(base, zoo)
    tiny.save("llama", base / "m", max_shard_size="8KB")
    for name, examples in (("harm", tiny.rows(12, "c")), ("benign", tiny.rows(9, "b"))):
        text = "".join(json.dumps(row) + "\n" for row in examples)
        (base / f"{name}.jsonl").write_text(text, encoding="utf-8")


def tasks(base: Path) -> dict[str, Task]:
    model, harm = str(base / "m"), str(base / "harm.jsonl")
    mask = str(base / "a.mask.safetensors")
    collected = ["--attack", "prefill:2", "--samples", "3", "--temperature", "1"]
    collected += ["--max-new-tokens", "6", "--judge", "exact"]

    def bare(folder: Path) -> None:
        shutil.copytree(base / "run", folder / "run")

    return {
        "score": Task(
            "score",
            lambda f: ["score", model, "--data", harm, "-o", str(f / "a.scores.safetensors")],
        ),
        "study": Task(
            "study",
            lambda f: ["study", "run", str(base / "study.yaml"), "-o", str(f / "run")],
            ("--resume",),
        ),
        "collect": Task(
            "collect",
            lambda f: [
                "data",
                "collect",
                model,
                "--data",
                harm,
                "-o",
                str(f / "set.jsonl"),
                *collected,
            ],
        ),
        "prune": Task("prune", lambda f: ["prune", model, mask, "-o", str(f / "cut")]),
        "report": Task("report", lambda f: ["report", str(f / "run")], (), bare),
    }


def make_inputs(base: Path) -> None:
    log = base / "inputs.log"
    child = os.fork()
    if child == 0:
        try:
            prepared(base)
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0, "the inputs could not be made"
    for name, reduction in (("harm", "signed"), ("benign", "mean_of_abs")):
        words = ["score", str(base / "m"), "--data", str(base / f"{name}.jsonl"), "--keep", "0.1"]
        words += ["--reduction", reduction, "-o", str(base / f"{name}.scores.safetensors")]
        assert run(words, log) == 0, log.with_suffix(".out").read_text(encoding="utf-8")
    words = [str(base / f"{name}.scores.safetensors") for name in ("harm", "benign")]
    words = ["select", *words, "--q", "0.1", "--p", "0.05", "-o", str(base / "a.mask.safetensors")]
    assert run(words, log) == 0, log.with_suffix(".out").read_text(encoding="utf-8")
    words = ["study", "run", str(base / "study.yaml"), "-o", str(base / "run")]
    assert run(words, log) == 0, log.with_suffix(".out").read_text(encoding="utf-8")
    for name in ("report.html", "report.json", "report.md"):
        (base / "run" / name).unlink()
    shutil.rmtree(base / "run" / "figures")
    shutil.rmtree(base / "run" / "tables")


def undisturbed(task: Task, base: Path) -> Reference:
    folder, log = base / "whole" / task.name, base / f"{task.name}.log"
    folder.mkdir(parents=True)
    task.prepare(folder)
    start = time.perf_counter()
    code = run(task.words(folder), log)
    seconds = time.perf_counter() - start
    assert code == 0, log.with_suffix(".out").read_text(encoding="utf-8")
    return Reference(left(folder), seconds, len(noted(log, "named")))


def once(task: Task, reference: Reference, kill: Kill, folder: Path) -> str:
    """Kill a command, look, let it go on, look again; return how it ended."""
    # The same path each time: it is part of what some files say.
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    task.prepare(folder)
    log = folder.parent / "kill.log"
    log.unlink(missing_ok=True)
    log.with_suffix(".out").unlink(missing_ok=True)
    code = run(task.words(folder), log, kill)
    output = (
        log.with_suffix(".out").read_text(encoding="utf-8")
        if log.with_suffix(".out").exists()
        else ""
    )
    expected = {-signal.SIGKILL} if kill.sent == signal.SIGKILL else {STOPPED, -kill.sent}
    assert code in expected | {0}, f"exit code {code}: {output}"
    for name, content in left(folder).items():
        check(name, content, reference.files, final=False)
    if code == STOPPED:
        assert "Traceback" not in output, output
        assert not litter(folder), litter(folder)
        assert not list(folder.rglob("claims/*.json")), "the claim is left"
    finished = noted(log, "done")
    if (code != 0 and left(folder).keys() != reference.files.keys()) or task.name == "report":
        started = (folder / "run" / "config.yaml").exists()
        words = [*task.words(folder), *(task.again if started else ())]
        again = run(words, log)
        assert again == 0, log.with_suffix(".out").read_text(encoding="utf-8")
    begun = noted(log, "begun")
    twice = [key for key in finished if begun.count(key) != 1]
    assert not twice, f"measured twice: {twice}"
    assert all(count <= 2 for count in Counter(begun).values())
    files = left(folder)
    assert files.keys() == reference.files.keys(), files.keys() ^ reference.files.keys()
    for name, content in files.items():
        check(name, content, reference.files, final=True)
    return {0: "too late", STOPPED: "stopped"}.get(code, "killed")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--kills", type=int, default=200)
    options.add_argument("--seed", type=int, default=0)
    arguments = options.parse_args()
    draw = random.Random(arguments.seed)
    warm()
    counts: Counter[tuple[str, str, str]] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        make_inputs(base)
        tasks_by_name = tasks(base)
        order = [name for name, share in TASKS.items() for _ in range(share)]
        references = {name: undisturbed(tasks_by_name[name], base) for name in TASKS}
        for number in range(arguments.kills):
            name = order[number % len(order)]
            reference, sent = references[name], SIGNALS[(number // len(order)) % 3]
            if number % 3 == 0 and reference.names:
                place_at = draw.randint(1, reference.names)
                kill = Kill(sent, place=place_at, after=draw.random() < 0.5)
            else:
                kill = Kill(sent, delay=draw.random() * reference.seconds)
            try:
                # In the place of the undisturbed one, whose path some files hold.
                ended = once(tasks_by_name[name], reference, kill, base / "whole" / name)
            except AssertionError as error:
                raise SystemExit(
                    f"kill {number} of seed {arguments.seed}, {name}, {kill}: {error}"
                ) from error
            counts[name, sent.name, ended] += 1
            sys.stderr.write(f"{number + 1} {name} {kill}: {ended}\n")
    ends = Counter(ended for _, _, ended in counts.elements())
    for (name, sent_name, ended), count in sorted(counts.items()):
        print(f"{name:8} {sent_name:8} {ended:9} {count}")  # noqa: T201
    print(f"{arguments.kills} kills: {dict(ends)}; nothing broken, all went on to the same files")  # noqa: T201


if __name__ == "__main__":
    main()
