"""Two 'hosts' on this machine: network and host-name namespaces with addresses of their own, joined by a wire."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp

from tests.support.distributed import ENVIRONMENT, ROOT
from tests.support.needs import lacking, search_path, skip_or_fail

PROGRAMS = ("ip", "unshare", "ssh", "sshd", "ssh-keygen", "pdsh")
REQUIRE = "NEUROPBR_REQUIRE_HOSTS"
ADDRESSES = ("10.77.0.1", "10.77.0.2")
# Gloo would look up the host's name, which no one resolves here.
NETWORK = {"GLOO_SOCKET_IFNAME": "eth0"}
SSHD_CONF = """
ListenAddress {address}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/key.pub
PidFile none
StrictModes no
UsePAM no
PermitRootLogin yes
"""


def missing() -> str | None:
    """Why there can be no hosts here."""
    return lacking(PROGRAMS, "iproute2 util-linux openssh-server pdsh", ("--net", "--uts"))


class Hosts:
    """`host1` and `host2`, at `ADDRESSES`, each with `eth0`, and an sshd that lets this process in."""

    def __init__(self) -> None:
        self.spaces = [f"neuropbr-{os.getpid()}-{i}" for i in (1, 2)]
        self.folder = Path(mkdtemp(prefix="hosts-"))
        self.processes: list[subprocess.Popen] = []

    def start(self) -> None:
        for space in self.spaces:
            ip("netns", "add", space)
        one, two = self.spaces
        ip("link", "add", "eth0", "netns", one, "type", "veth", "peer", "name", "eth0", "netns", two)
        for space, address in zip(self.spaces, ADDRESSES, strict=True):
            ip("-n", space, "addr", "add", f"{address}/24", "dev", "eth0")
            ip("-n", space, "link", "set", "eth0", "up")
            ip("-n", space, "link", "set", "lo", "up")

    def start_sshd(self) -> None:
        Path("/run/sshd").mkdir(exist_ok=True)  # where it drops its privileges
        for name in ("host_key", "key"):
            keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", f"{self.folder}/{name}"]
            subprocess.run(keygen, check=True)
        sshd = shutil.which("sshd", path=search_path())
        assert sshd is not None
        for host, address in enumerate(ADDRESSES):
            config = self.folder / f"sshd-{host}"
            config.write_text(SSHD_CONF.format(address=address, folder=self.folder))
            self.run(host, [sshd, "-D", "-e", "-f", str(config)])
            end = time.monotonic() + 30
            while self.run(host, ["bash", "-c", f"exec 3<>/dev/tcp/{address}/22"]).wait():
                assert time.monotonic() < end, f"no sshd on {address}"
                time.sleep(0.1)

    @property
    def ssh_options(self) -> str:
        return f"-i {self.folder}/key -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"

    def run(
        self, host: int, command: Sequence[str], env: Mapping[str, str] | None = None, out: Path | None = None
    ) -> subprocess.Popen:
        """Start a program on a host (0 or 1); `out` takes all it prints."""
        inside = ["bash", "-c", f'hostname host{host + 1}; exec "$@"', "host", *command]
        target = subprocess.DEVNULL if out is None else out.open("wb")
        process = subprocess.Popen(
            ["ip", "netns", "exec", self.spaces[host], "unshare", "--uts", *inside],
            stdin=subprocess.DEVNULL, stdout=target, stderr=subprocess.STDOUT, cwd=ROOT,
            env={**os.environ, **ENVIRONMENT, **NETWORK, "PATH": search_path(), **(env or {})},
        )  # fmt: skip
        self.processes.append(process)
        return process

    def stop(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
        for space in self.spaces:
            for pid in ip("netns", "pids", space).split():
                os.kill(int(pid), 9)
            ip("netns", "del", space)
        shutil.rmtree(self.folder)


def ip(*words: str) -> str:
    path = search_path()
    return subprocess.run(
        ["ip", *words], check=True, capture_output=True, text=True, env={**os.environ, "PATH": path}
    ).stdout


@contextmanager
def two_hosts() -> Iterator[Hosts]:
    """Skips where they can't be had; NEUROPBR_REQUIRE_HOSTS=1 makes that a failure."""
    skip_or_fail("two hosts", missing(), REQUIRE)
    hosts = Hosts()
    try:
        hosts.start()
        yield hosts
    finally:
        hosts.stop()
