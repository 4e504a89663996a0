"""What the peer benchmarks share: a fair allocator for PyTorch, children in turns, a table."""
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time


def keep_freed_memory():
    """Starts the program again with an allocator that gives nothing back to the system. Without it
    PyTorch's eager steps are up to 7 times slower, and the comparison would be unfair to it."""
    if "PEER_ALLOCATOR" not in os.environ:
        os.environ.update(PEER_ALLOCATOR="kept", MALLOC_MMAP_THRESHOLD_="4000000000",
                          MALLOC_TRIM_THRESHOLD_="8000000000", MALLOC_TOP_PAD_="500000000")
        os.execv(sys.executable, [sys.executable] + sys.argv)


def need_torch(device="cpu"):
    """PyTorch, whose tensors are made on the device where nothing else is said."""
    try:
        import torch
    except ImportError:
        sys.exit("this needs PyTorch: python3 -m venv VENV && VENV/bin/pip install torch numpy, "
                 "then make bench-peer PYTHON=VENV/bin/python")
    if device == "cuda" and not torch.cuda.is_available():
        sys.exit(f"--device cuda: PyTorch {torch.__version__} finds no GPU; use --device cpu")
    torch.set_default_device(device)
    return torch


def add_device(parser):
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"),
                        help="cuda: everything in bf16; else in float32")
    parser.add_argument("--seconds", type=float, default=float("inf"),
                        help="begins nothing new after that; what was left out is named")


def dtype_of(torch, device):
    return torch.bfloat16 if device == "cuda" else torch.float32


class Clock:
    """Whether there is time to begin something; what had none is listed."""

    def __init__(self, seconds):
        self.end, self.left_out = time.monotonic() + seconds, {}

    def allows(self, name):
        if time.monotonic() > self.end:
            self.left_out[name] = None
        return time.monotonic() <= self.end

    def report(self):
        if self.left_out:
            print("no time was left for (a round of):", ", ".join(self.left_out))


def child(command):
    """Runs a command, quietly; its peak memory in MiB. Ends the benchmark where it fails."""
    with tempfile.TemporaryFile("w+") as log:
        try:
            p = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT,
                                 env={k: v for k, v in os.environ.items()
                                      if not k.startswith("MALLOC_")})
        except OSError as e:
            sys.exit(f"{command[0]}: {e.strerror}; make builds it")
        _, status, usage = os.wait4(p.pid, 0)
        p.returncode = os.waitstatus_to_exitcode(status)
        if p.returncode:
            log.seek(0)
            sys.exit(f"{' '.join(command)}: exit status {p.returncode}\n{log.read()[-2000:]}")
    return usage.ru_maxrss / 1024


def times_ms(f, repeats):
    """Milliseconds of each call after one that does not count. On a GPU between events on its
    queue, behind a call that keeps it busy while the host starts the one that counts."""
    f()
    taken = []
    torch = sys.modules["torch"]
    if torch.get_default_device().type == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in "be")
        for _ in range(repeats):
            f()
            begin.record()
            f()
            end.record()
            end.synchronize()
            taken.append(begin.elapsed_time(end))
        return taken
    for _ in range(repeats):
        begin = time.perf_counter()
        f()
        taken.append((time.perf_counter() - begin) * 1e3)
    return taken


def reason(error):
    """Its first line: what PyTorch cannot do is a result too."""
    return (str(error).strip() or repr(error)).splitlines()[0][:120]


def median(numbers):
    return statistics.median(numbers) if numbers else None


def table(head, rows):
    """Columns padded to their widest cell; None is a dash, floats get three digits."""
    def cell(c):
        if c is None or isinstance(c, str):
            return c or "-"
        return f"{c:.3g}" if c < 100 else f"{c:.0f}"

    text = [[cell(c) for c in row] for row in rows]
    widths = [max(len(r[i]) for r in [head] + text) for i in range(len(head))]
    for row in [head] + text:
        print("  ".join(c.ljust(w) if i == 0 else c.rjust(w)
                        for i, (c, w) in enumerate(zip(row, widths))).rstrip())


def save(path, rows):
    if path:
        with open(path, "w") as f:
            json.dump(rows, f, indent=1)
        print(f"written: {path}")
