"""Who is at work in a folder: a claim on a part of it, with its owner, so that nobody works twice.

A run's cells are numbered, and a claim is on a part i/n of them; a whole run is 1/1. Two claims
may stand side by side if their parts do not overlap: shards of one run do, the same shard twice
does not, nor does a shard beside a whole run. A claim is a file `claims/i-of-n.json` that says
which process owns it, on which host and since when. It is removed when its owner is done.

A process that is killed leaves its claim behind. The claim is taken over if its owner is surely
dead: it ran on this host, in this boot and process space, and no process with its number and start
time is left. In any other case only a person can know, and the message says what to look for and
which file to delete.

On one host a file lock makes looking and claiming one step. Between hosts the claim file itself
does, because it can be created once only; parts that overlap under different names are found by
looking again after claiming, and then both yield rather than both go on.
"""

from __future__ import annotations

import contextlib
import platform
import re
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import filelock
import psutil

from resect import files
from resect.errors import InputError

FOLDER = "claims"
_NAME = re.compile(r"(\d+)-of-(\d+)\.json")
# Start times are read from the clock of the system, in ticks; a reused number differs by more.
_SAME_START = 0.5
_WAIT = 30.0
# Lock files in the cache, which all folders share by their hash: they are never removed, since a
# process that waits for a removed file would not see who holds the next one of its name.
_LOCKS = 64
_OLD_NAME = 16


class Portion(NamedTuple):
    """A part of a run's cells: its number, from 1, and how many equal ones there are in all."""

    number: int
    total: int

    def overlaps(self, portion: Portion) -> bool:
        """Whether (i-1)/n to i/n and (j-1)/m to j/m share anything, as they do cells."""
        (i, n), (j, m) = self, portion
        return (i - 1) * m < j * n and (j - 1) * n < i * m


WHOLE = Portion(1, 1)


@dataclass(frozen=True)
class Owner:
    """The process that owns a claim.

    Attributes:
        pid: Its number.
        host: Name of its host.
        space: Boot of the host and process space in which the number has a meaning; "" if unknown.
        started: When the process began, seconds since 1970.
        since: When the claim was made, for people.
    """

    pid: int
    host: str
    space: str
    started: float
    since: str

    @staticmethod
    def this() -> Owner:
        """Return the process that asks."""
        process = psutil.Process()
        since = time.strftime("%Y-%m-%d %H:%M:%S %Z")
        return Owner(process.pid, socket.gethostname(), _space(), process.create_time(), since)

    @property
    def is_dead(self) -> bool:
        """Whether the process has surely ended."""
        if (self.host, self.space) != (socket.gethostname(), _space()) or not self.space:
            return False
        try:
            process = psutil.Process(self.pid)
            # Ended, but not yet taken note of by its parent.
            if process.status() == psutil.STATUS_ZOMBIE:
                return True
            return bool(abs(process.create_time() - self.started) > _SAME_START)
        except psutil.NoSuchProcess:
            return True
        except psutil.Error:
            return False


def _space() -> str:
    """Name the boot and the process space: containers may share a host's name and not its pids."""
    if platform.system() != "Linux":
        return platform.system()
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        # An isolated container may not read its own name space; then nothing is taken over.
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


@contextlib.contextmanager
def locked(folder: str | Path, portion: Portion = WHOLE) -> Iterator[None]:
    """Own a part of a folder while the block runs.

    Half-written files that a killed process left in the folder are removed first, if nobody else is
    at work in it.

    Args:
        folder: A run's folder; it is made if it is missing.
        portion: Which part of it.

    Raises:
        InputError: Another process holds an overlapping part, or the folder cannot be written.
    """
    path = Path(folder) / FOLDER / f"{portion.number}-of-{portion.total}.json"
    owner = Owner.this()
    with _one_at_a_time(Path(folder)):
        _refuse_overlap(path, portion, owner)
        if not files.create_json(path, owner):
            raise _taken(path, owner_of(path))
        try:
            _refuse_overlap(path, portion, owner)
            if not _others(path):
                files.remove_unfinished(Path(folder), before=path.stat().st_mtime_ns)
        except BaseException:
            _release(path, owner)
            raise
    try:
        yield
    finally:
        _release(path, owner)


def _release(path: Path, owner: Owner) -> None:
    # Gone with the whole folder, or deleted by hand and owned by another one since.
    with contextlib.suppress(OSError):
        if owner_of(path) == owner:
            path.unlink()
            path.parent.rmdir()


@contextlib.contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Keep the other processes of this host from looking meanwhile."""
    number = int(files.hash_text(str(folder.resolve())), 16) % _LOCKS
    locks = files.cache_folder() / FOLDER
    lock = filelock.FileLock(locks / f"{number:02}.lock", timeout=_WAIT)
    try:
        locks.mkdir(parents=True, exist_ok=True)
        _remove_old_locks(locks)
        lock.acquire()
    except filelock.Timeout as error:
        raise InputError(
            f"cannot claim {folder}",
            got=f"another process held {lock.lock_file} for {_WAIT:g} s",
            fix="try again",
        ) from error
    except (OSError, NotImplementedError):
        # No place for a lock, or a file system without them: the claim files alone decide.
        yield
        return
    try:
        yield
    finally:
        lock.release()


def _remove_old_locks(locks: Path) -> None:
    """Remove the lock files of earlier versions, which had one for every folder.

    Nobody makes such a name again. One that a process of an earlier version holds now stays.
    """
    for path in locks.glob("?" * _OLD_NAME + ".lock"):
        old = filelock.FileLock(path, timeout=0)
        # Held, or removed meanwhile.
        with contextlib.suppress(filelock.Timeout, OSError), old:
            path.unlink(missing_ok=True)


def _others(path: Path) -> dict[Path, Portion]:
    """Return the claims beside a claim, with the part that each is on."""
    claims = {}
    for claim in sorted(path.parent.glob("*.json")):
        match = _NAME.fullmatch(claim.name)
        if match and claim != path:
            claims[claim] = Portion(int(match[1]), int(match[2]))
    return claims


def _refuse_overlap(path: Path, portion: Portion, mine: Owner) -> None:
    """Refuse if a live process owns an overlapping part; remove claims of dead ones."""
    claims = _others(path)
    if path.exists() and owner_of(path) != mine:
        claims[path] = portion
    for claim, claimed in claims.items():
        owner = owner_of(claim)
        if owner is not None and owner.is_dead:
            claim.unlink(missing_ok=True)
        elif portion.overlaps(claimed) and claim.exists():
            raise _taken(claim, owner)


def owner_of(path: Path) -> Owner | None:
    """Return who made a claim; None if the file is gone or does not say."""
    try:
        return Owner(**files.read_json(path))
    except (InputError, TypeError):
        return None


def _taken(path: Path, owner: Owner | None) -> InputError:
    portion = path.stem.replace("-of-", "/")
    if owner is None:
        got = f"{path} does not say who"
    else:
        got = f"process {owner.pid} on {owner.host}, since {owner.since}, holds part {portion}"
    return InputError(
        f"another process is at work in {path.parent.parent}",
        got=got,
        allowed="one process a run, or --shard i/n with parts that do not overlap",
        fix="wait for it or stop it; if that process is surely not running any more (look on "
        f"{'its host' if owner is None else owner.host}), delete {path} and try again",
    )
