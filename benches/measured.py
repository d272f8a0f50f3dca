"""What the measuring scripts share: a server on a configuration of its own, and what it costs."""

import os
import resource
import signal
import socket
import subprocess
import tempfile
import time

TICK = os.sysconf("SC_CLK_TCK")


def many_files():
    """As many open files as the system lets us have."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    for limit in (1 << 18, hard):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
            return limit
        except (OSError, ValueError):
            # only root may raise it
            continue


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Served:
    """nginx or Couloir on `conf`, with its processes; ended with the block."""

    def __init__(self, binary, conf, port):
        self.folder = tempfile.TemporaryDirectory(prefix="couloir-measured-")
        self.port = port
        path = os.path.join(self.folder.name, "nginx.conf")
        with open(path, "w") as f:
            f.write(conf)
        os.chmod(self.folder.name, 0o755)
        self.process = subprocess.Popen([binary, "-p", self.folder.name + "/", "-c", path, "-e", "error.log"])

    def __enter__(self):
        end = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return self
            except OSError:
                if self.process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError("it does not serve")
                time.sleep(0.02)

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)
        self.folder.cleanup()

    def processes(self):
        """The master and its children."""
        found, parents = [self.process.pid], {}
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                try:
                    with open(f"/proc/{entry}/stat") as f:
                        parents[int(entry)] = int(f.read().rsplit(")", 1)[1].split()[1])
                except OSError:
                    pass
        for pid in found:
            found += [child for child, parent in parents.items() if parent == pid]
        return found

    def cpu(self):
        """User and system time so far, seconds."""
        ticks = 0
        for pid in self.processes():
            with open(f"/proc/{pid}/stat") as f:
                fields = f.read().rsplit(")", 1)[1].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / TICK

    def memory(self, what="Pss"):
        """`Pss` or `Rss` of all processes, KiB."""
        total = 0
        for pid in self.processes():
            with open(f"/proc/{pid}/smaps_rollup") as f:
                total += sum(int(line.split()[1]) for line in f if line.startswith(what + ":"))
        return total

    def log(self):
        try:
            with open(os.path.join(self.folder.name, "error.log")) as f:
                return f.read()
        except OSError:
            return ""
