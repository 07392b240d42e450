"""A Slurm of one node: munged, slurmctld and slurmd as child processes, all files in one folder.

No accounting, no cgroups and no systemd, so that it runs in a container; the node claims more cores
than there may be. What usually takes minutes (the wait before a job that was put back starts again,
the rounds of the scheduler, the wait before a kill) takes seconds.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

NEEDED = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "squeue", "scancel", "scontrol")
PATIENCE = 20.0
# Packages put the servers where an ordinary user's path does not look.
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def missing() -> str:
    """Say why no Slurm can be started here; "" if it can."""
    lacking = [name for name in NEEDED if shutil.which(name, path=PATH) is None]
    if lacking:
        return f"no {', '.join(lacking)}: apt-get install slurmctld slurmd slurm-client munge"
    return "" if os.geteuid() == 0 else "a Slurm of the test's own is started by root alone"


CONFIGURATION = """\
ClusterName=resect
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerParameters=sched_interval=1,sched_min_interval=0,bf_interval=1
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=2
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
NodeName={host} NodeAddr=127.0.0.1 CPUs=8 RealMemory=64000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@contextlib.contextmanager
def cluster() -> Iterator[Path]:
    """Run a Slurm while the block runs, and name its configuration, for `SLURM_CONF`.

    Raises:
        RuntimeError: It does not come up; the error ends with what its servers said.
    """
    folder = Path(tempfile.mkdtemp(prefix="resect-slurm-"))
    for name in ("state", "spool"):
        (folder / name).mkdir()
    configuration = folder / "slurm.conf"
    text = CONFIGURATION.format(
        host=socket.gethostname().split(".")[0], folder=folder, ports=_free_ports(2)
    )
    configuration.write_text(text, encoding="utf-8")
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o600)
    places = {"key-file": key, "socket": folder / "munge.socket", "pid-file": folder / "munge.pid"}
    places |= {"seed-file": folder / "munge.seed", "log-file": folder / "munge.log"}
    options = [f"--{name}={location}" for name, location in places.items()]
    servers: list[subprocess.Popen[bytes]] = []
    environment = os.environ | {"SLURM_CONF": str(configuration), "PATH": PATH}
    try:
        servers.append(_server(["munged", "--foreground", "--force", *options], folder))
        _await(lambda: (folder / "munge.socket").exists(), servers, folder)
        servers.append(_server(["slurmctld", "-D", "-f", str(configuration)], folder))
        servers.append(_server(["slurmd", "-D", "-f", str(configuration)], folder))
        _await(lambda: "idle" in _said(["sinfo", "-h", "-o", "%t"], environment), servers, folder)
        yield configuration
    finally:
        if len(servers) > 1:
            # Jobs are no children of slurmd; they are asked to end, and waited for.
            _said(["scancel", "--user=root"], environment)
            with contextlib.suppress(RuntimeError):
                _await(lambda: not _said(["squeue", "-h"], environment), servers, folder)
        for server in reversed(servers):
            server.terminate()
        for server in servers:
            try:
                server.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                server.kill()
        shutil.rmtree(folder, ignore_errors=True)


def _server(command: list[str], folder: Path) -> subprocess.Popen[bytes]:
    """Start a server that ends with this process, however that ends."""
    guard = ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []
    with (folder / f"{command[0]}.out").open("wb") as out:
        return subprocess.Popen(
            [*guard, *command], stdout=out, stderr=out, env=os.environ | {"PATH": PATH}
        )


def _said(command: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _await(ready: Callable[[], bool], servers: list[subprocess.Popen[bytes]], folder: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while not ready():
        if time.monotonic() > deadline or any(server.poll() is not None for server in servers):
            outputs = [f"{path.name}:\n{path.read_text()[-2000:]}" for path in folder.glob("*.out")]
            raise RuntimeError("Slurm does not come up\n" + "\n".join(outputs))
        time.sleep(0.05)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for listener in sockets:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in sockets]
