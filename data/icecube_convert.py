#!/usr/bin/env python3
"""Turns Kaggle's files ("IceCube - Neutrinos in Deep Ice") into what data/icecube_shards.h maps.

    icecube_convert.py IN OUT [--batches 1-5,7] [--skip-bad] [--jobs N]

IN has sensor_geometry.csv and train_meta.parquet with train/batch_K.parquet, or test_meta.parquet
with test/batch_K.parquet, or both. OUT gets geometry.npy and a folder batch_K a file, written as
batch_K.tmp and renamed when all of it is on the disk: so the same command goes on where an earlier
one was interrupted. Damaged events are named; --skip-bad leaves them out.

One process reads the table of events, in pieces, and hands each batch its rows; --jobs processes
convert, each one file at a time, in pieces as well. So memory stays small whatever the files' size,
as long as the table is sorted by batch_id and event_id, as Kaggle's is; another order needs room
for all of the table's rows.
"""
import argparse
import contextlib
import csv
import fcntl
import multiprocessing
import multiprocessing.connection
import os
import re
import signal
import struct
import sys
import time
from pathlib import Path
from typing import NamedTuple

try:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
except ImportError as missing:
    sys.exit(f"icecube_convert: {missing.name} is not installed here; 'make deps' makes "
             "build/python/bin/python, which has it, and so does "
             "'pip install -r data/requirements.txt'")

SENSORS = 5160
PIECE = 1 << 17  # rows read at a time: some MiB, so that the checks find them in the cache
NAMED = 10       # damaged events that are named; the rest are counted

INTEGER = ("an integer", pa.types.is_integer)
FLOATING = ("a floating-point number", pa.types.is_floating)
BOOLEAN = ("a boolean", pa.types.is_boolean)
EVENT_COLUMNS = {"batch_id": INTEGER, "event_id": INTEGER, "first_pulse_index": INTEGER,
                 "last_pulse_index": INTEGER}
DIRECTION_COLUMNS = {"azimuth": FLOATING, "zenith": FLOATING}
PULSE_COLUMNS = {"event_id": INTEGER, "sensor_id": INTEGER, "time": INTEGER, "charge": FLOATING,
                 "auxiliary": BOOLEAN}
PULSE_FILES = {"sensor_id": np.int16, "time": np.int32, "charge": np.float32,
               "auxiliary": np.uint8}
SHARD_FILES = [f"{name}.npy" for name in ("event_id", "offsets", "direction", *PULSE_FILES)]


class Bad(Exception):
    """One sentence for the user."""


@contextlib.contextmanager
def parquet_errors(path):
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as e:
        raise Bad(f"{path}: cannot be read as parquet ({str(e).strip().splitlines()[0]}); "
                  "copy it anew") from e


def read_rows(path, columns):
    """Yields the rows in pieces, {column: array}; a float that is null comes as NaN."""
    with parquet_errors(path), pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
        fields = {field.name: field.type for field in file.schema_arrow}
        for name, (kind, is_kind) in columns.items():
            if name not in fields:
                raise Bad(f"{path}: there is no column {name}, only {', '.join(fields)}; expected "
                          "is Kaggle's layout")
            if not is_kind(fields[name]):
                raise Bad(f"{path}: column {name} has type {fields[name]}; expected is {kind}, as "
                          "Kaggle has it")
        for piece in file.iter_batches(PIECE, columns=list(columns), use_threads=False):
            if piece.num_rows:
                yield {name: to_array(path, name, piece.column(name), *columns[name])
                       for name in columns}


def to_array(path, name, column, kind, is_kind):
    if column.null_count and is_kind != pa.types.is_floating:
        raise Bad(f"{path}: column {name} has values that are null; expected is {kind} in each row")
    if is_kind == pa.types.is_boolean:
        column = column.cast(pa.uint8())
    array = column.to_numpy(zero_copy_only=False)
    return array.astype(np.int64, copy=False) if is_kind == pa.types.is_integer else array


def read_geometry(path):
    """float32 (5160, 3), m."""
    xyz = np.full((SENSORS, 3), np.nan, np.float32)
    try:
        with open(path, newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as e:
        raise Bad(f"{path}: cannot be read ({getattr(e, 'strerror', e)}); expected is Kaggle's "
                  "table of sensors") from e
    for line, row in enumerate(rows, 2):
        try:
            sensor, position = int(row["sensor_id"]), [float(row[axis]) for axis in "xyz"]
        except (KeyError, TypeError, ValueError) as e:
            raise Bad(f"{path}: line {line} is not understood; expected are sensor_id,x,y,z, a "
                      "whole number and three in m") from e
        again = 0 <= sensor < SENSORS and not np.isnan(xyz[sensor, 0])
        if not 0 <= sensor < SENSORS or again:
            raise Bad(f"{path}: line {line} has sensor {sensor}{' a second time' * again}; "
                      f"expected is each of 0..{SENSORS - 1} once")
        if not np.isfinite(np.float32(position)).all():
            raise Bad(f"{path}: line {line}: sensor {sensor}'s position is not finite: {position}")
        xyz[sensor] = position
    lost = np.flatnonzero(np.isnan(xyz[:, 0]))
    if len(lost):
        raise Bad(f"{path}: {SENSORS - len(lost)} sensors, without {lost[0]} for one; expected is "
                  f"each of 0..{SENSORS - 1} once")
    return xyz


class Part:
    """train or test: its table of events and how many of them each batch has."""

    def __init__(self, folder, name):
        self.meta = folder / f"{name}_meta.parquet"
        self.folder = folder / name
        with parquet_errors(self.meta):
            names = pq.read_schema(self.meta).names
        self.columns = dict(EVENT_COLUMNS)
        if name == "train" or not set(DIRECTION_COLUMNS).isdisjoint(names):
            self.columns |= DIRECTION_COLUMNS
        self.events, self.rising = {}, True
        last = None
        for rows in self.ids():
            for number, n in zip(*np.unique(rows["batch_id"], return_counts=True)):
                self.events[int(number)] = self.events.get(int(number), 0) + int(n)
            ids = rows["event_id"]
            self.rising &= (last is None or ids[0] > last) and bool((ids[1:] > ids[:-1]).all())
            last = ids[-1]
        if not self.events:
            raise Bad(f"{self.meta}: it has no rows; expected is one for each event")

    def ids(self):
        return read_rows(self.meta, {"batch_id": INTEGER, "event_id": INTEGER})

    def batch(self, number):
        return self.folder / f"batch_{number}.parquet"

    def doubled(self):
        """The event_ids that more than one row has; only a table out of order has any."""
        if self.rising:
            return np.empty(0, np.int64)
        ids = np.sort(np.concatenate([rows["event_id"] for rows in self.ids()]))
        return np.unique(ids[1:][ids[1:] == ids[:-1]])

    def tasks(self, wanted, out, skip_bad):
        """Yields what a process needs to convert a batch, as soon as all its rows are read."""
        doubled = self.doubled()
        left = {number: n for number, n in self.events.items() if number in wanted}
        pieces = {number: [] for number in left}
        for rows in read_rows(self.meta, self.columns):
            for number in np.unique(rows["batch_id"]).tolist():
                if number not in pieces:
                    continue
                mine = rows["batch_id"] == number
                pieces[number].append({name: a[mine] for name, a in rows.items()})
                left[number] -= int(mine.sum())
                if left[number] == 0:
                    whole = pieces.pop(number)
                    events = {name: np.concatenate([piece[name] for piece in whole])
                              for name in self.columns}
                    yield Task(number, self.batch(number), self.meta.name, events, doubled, out,
                               skip_bad)
            if not pieces:
                break


class Task(NamedTuple):
    number: int
    batch: Path
    meta: str
    events: dict  # columns of the table of events, this batch's rows
    doubled: np.ndarray
    out: Path
    skip_bad: bool


def choose_batches(text, known):
    """The numbers of '1-5,7', which must all be known; all known ones where there is no text."""
    if text is None:
        return sorted(known)
    chosen = set()
    for word in text.split(","):
        m = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", word.strip())
        low, high = (int(m[1]), int(m[2] or m[1])) if m else (1, 0)
        if low > high:
            raise Bad(f"--batches {text}: '{word}' is not understood; expected are numbers and "
                      "ranges, such as 1-5,7")
        chosen |= (found := {k for k in known if low <= k <= high})
        if len(found) <= high - low:
            unknown = next(k for k in range(low, high + 1) if k not in found)
            raise Bad(f"--batches {text}: no event is in batch {unknown}; there are batches "
                      f"{min(known)} to {max(known)}")
    return sorted(chosen)


class NpyWriter:
    """An .npy file that grows by rows; the header, written last, says how many."""

    HEADER = 128

    def __init__(self, path, dtype, row=()):
        self.dtype, self.row, self.rows = np.dtype(dtype), row, 0
        self.file = open(path, "wb")
        self.file.write(bytes(self.HEADER))

    def append(self, rows):
        self.file.write(np.ascontiguousarray(rows, self.dtype))
        self.rows += len(rows)

    def close(self):
        about = {"descr": self.dtype.str, "fortran_order": False, "shape": (self.rows, *self.row)}
        size = self.HEADER - 10
        self.file.seek(0)
        self.file.write(b"\x93NUMPY\1\0" + struct.pack("<H", size) +
                        str(about).ljust(size - 1).encode() + b"\n")
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()


def save_array(path, array):
    file = NpyWriter(path, array.dtype, array.shape[1:])
    file.append(array)
    file.close()


def find_pulse_faults(rows, faults):
    """Adds to faults, {event_id: clause}. Least and greatest decide; who it was is asked after."""
    def blame(wrong, column, expected):
        ids, at = np.unique(rows["event_id"][wrong], return_index=True)
        for event, value in zip(ids.tolist(), rows[column][wrong][at].tolist()):
            faults.setdefault(event, f"{column} {value}, expected {expected}")

    for column, high, expected in (("sensor_id", SENSORS - 1, f"0..{SENSORS - 1}"),
                                   ("time", 2**31 - 1, "0..2147483647")):
        a = rows[column]
        if a.min() < 0 or a.max() > high:
            blame((a < 0) | (a > high), column, expected)
    a = rows["charge"]
    greatest = float(np.finfo(np.float32).max)
    if not (a.min() >= 0 and a.max() <= greatest):  # nor where there is a NaN
        blame(~((a >= 0) & (a <= greatest)), "charge", "a number from 0, finite in float32")


def write_pulses(path, folder, left_out, faults):
    """All pulses but those of the events left out. Returns the runs of equal event_id as ids and
    starts, one start more (the number of pulses). With faults, the files are worth nothing."""
    files = {name: NpyWriter(folder / f"{name}.npy", dtype) for name, dtype in PULSE_FILES.items()}
    ids, starts, n, last = [np.empty(0, np.int64)], [np.empty(0, np.int64)], 0, None
    for rows in read_rows(path, PULSE_COLUMNS):
        if len(left_out):
            kept = np.isin(rows["event_id"], left_out, invert=True)
            rows = {name: a[kept] for name, a in rows.items()}
            if not kept.any():
                continue
        find_pulse_faults(rows, faults)
        event = rows["event_id"]
        begins = np.flatnonzero(np.append(event[0] != last, event[1:] != event[:-1]))
        ids.append(event[begins])
        starts.append(begins + n)
        n, last = n + len(event), event[-1]
        with np.errstate(over="ignore"):
            for name, file in files.items():
                file.append(rows[name])
    for file in files.values():
        file.close()
    return np.concatenate(ids), np.append(np.concatenate(starts), n)


def find_event_faults(task, run_ids, run_starts, faults):
    """Compares the table of events with where the pulses really are."""
    events, n = task.events, run_starts[-1]
    ids, first, last = (events[c] for c in ("event_id", "first_pulse_index", "last_pulse_index"))
    order = np.argsort(run_ids)
    by_id = run_ids[order]
    at = np.searchsorted(by_id, ids)
    here = np.append(by_id, 0)[at] == ids  # each search has a place, also one past the last
    here[at == len(by_id)] = False
    run = np.append(order, 0)[at]
    start, end = run_starts[run], run_starts[np.minimum(run + 1, len(run_ids))] - 1
    scattered = by_id[1:][by_id[1:] == by_id[:-1]]

    def blame(wrong, clause):
        for i in np.flatnonzero(wrong):
            faults.setdefault(int(ids[i]), clause(i))

    def told(i):
        return f"first_pulse_index {first[i]}, last_pulse_index {last[i]}"

    blame(np.isin(ids, task.doubled), lambda i: f"more than one row in {task.meta}")
    blame(last < first, lambda i: f"no pulses: {told(i)}")
    blame((first < 0) | (last >= n), lambda i: f"{told(i)} of a file with {n} pulses")
    blame(~here, lambda i: f"no pulses: {told(i)} are other events'")
    blame(np.isin(ids, scattered), lambda i: "its pulses do not lie together")
    blame((start != first) | (end != last),
          lambda i: f"{told(i)}, but its pulses are {start[i]} to {end[i]}")
    for column, most, unit in (("azimuth", 2 * np.pi, "2 pi"), ("zenith", np.pi, "pi")):
        if column in events:
            blame(~((events[column] >= 0) & (events[column] <= most)),
                  lambda i: f"{column} {events[column][i]}, expected 0 to {unit}")
    for event in np.setdiff1d(run_ids, ids).tolist():
        faults.setdefault(event, f"pulses, but no row in {task.meta}")


def directions(events):
    """float32 (E, 2): azimuth and zenith, kept within 2 pi and pi, which float32 may round up."""
    pair = np.full((len(events["event_id"]), 2), np.nan, np.float32)
    for i, (column, most) in enumerate((("azimuth", 6.283185), ("zenith", 3.1415925))):
        if column in events:
            pair[:, i] = np.minimum(events[column].astype(np.float32), np.float32(most))
    return pair


def name_faults(faults):
    named = [f"event {event} ({faults[event]})" for event in sorted(faults)[:NAMED]]
    return ", ".join(named) + (f" and {len(faults) - NAMED} more" if len(faults) > NAMED else "")


def convert_batch(task, folder):
    """Fills the folder. Returns events, pulses, and the damaged events that are left out."""
    faults = {}
    run_ids, run_starts = write_pulses(task.batch, folder, [], faults)
    find_event_faults(task, run_ids, run_starts, faults)
    damaged = f"{task.batch}: {len(faults)} damaged events: {name_faults(faults)}"
    events = task.events
    if faults:
        if not task.skip_bad:
            raise Bad(f"{damaged}; --skip-bad leaves them out")
        left_out = np.fromiter(faults, np.int64)
        kept = np.isin(events["event_id"], left_out, invert=True)
        if not kept.any():
            raise Bad(f"{damaged}; no event is left")
        events = {name: a[kept] for name, a in events.items()}
        run_ids, run_starts = write_pulses(task.batch, folder, left_out, {})
    order = np.argsort(events["first_pulse_index"])  # as the pulses lie
    save_array(folder / "event_id.npy", run_ids)
    save_array(folder / "offsets.npy", run_starts)
    save_array(folder / "direction.npy", directions(events)[order])
    return len(run_ids), int(run_starts[-1]), damaged if faults else None


def sync_folder(path):
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def remove_shard(folder):
    """Removes what an earlier run, or this one, left there, and nothing else."""
    if folder.is_dir():
        for name in [*SHARD_FILES, "done"]:
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()


def finish_batch(task):
    """From the batch file to the finished folder: whole, or not there."""
    final = task.out / f"batch_{task.number}"
    half = final.with_suffix(".tmp")
    try:
        remove_shard(half)
        half.mkdir()
        result = convert_batch(task, half)
        (half / "done").touch()
        sync_folder(half)
        remove_shard(final)
        half.rename(final)
        sync_folder(task.out)
        return result
    except (Bad, OSError) as e:
        with contextlib.suppress(OSError):
            remove_shard(half)
        raise e if isinstance(e, Bad) else Bad(
            f"{e.filename or half}: {e.strerror}; nothing of this batch was kept; the same command "
            "goes on once that is mended") from e


def lock(path, how):
    """Locks a file or folder until its descriptor is closed. No two converters write into a
    folder: the first process locks OUT; those that it starts share a lock on OUT/geometry.npy, for
    they may outlive it by one file if it is killed."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError as e:
        raise Bad(f"{path}: another converter is writing there; wait until it ends") from e
    return descriptor


def work(pipe, out):
    """A process: converts what comes through the pipe until that closes."""
    lock(out / "geometry.npy", fcntl.LOCK_SH)
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            task = pipe.recv()
            try:
                pipe.send((None, finish_batch(task)))
            except Bad as e:
                pipe.send((str(e), None))


@contextlib.contextmanager
def processes(jobs, out):
    """Yields pipes, one a process. Left by an exception, it ends them at once."""
    context = multiprocessing.get_context("spawn")  # Arrow's threads do not survive a fork
    crew, pipes = [], []
    try:
        on_interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)  # which processes inherit
        for _ in range(jobs):
            mine, theirs = context.Pipe()
            crew.append(context.Process(target=work, args=(theirs, out), daemon=True))
            crew[-1].start()
            theirs.close()
            pipes.append(mine)
        signal.signal(signal.SIGINT, on_interrupt)
        yield pipes.copy()
    except BaseException:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # impatience must not stop the tidying up
        for process in crew:
            process.terminate()
        raise
    finally:
        for pipe in pipes:
            pipe.close()
        for process in crew:
            process.join()


class Progress:
    """A bar on a terminal, else a line a file; both on stderr."""

    def __init__(self, files, events):
        self.files, self.events = files, events
        self.done_files = self.done_events = self.kept_events = self.kept_pulses = 0
        self.begin, self.tty = time.monotonic(), sys.stderr.isatty()

    def rate(self):
        return self.done_events / max(1e-9, time.monotonic() - self.begin)

    def step(self, task, events, pulses):
        self.done_files += 1
        self.done_events += len(task.events["event_id"])
        self.kept_events += events
        self.kept_pulses += pulses
        left = round((self.events - self.done_events) / self.rate())
        eta = f"{left // 3600}:{left // 60 % 60:02}:{left % 60:02} left"
        text = f"{self.done_files} of {self.files} files, {self.rate():.0f} events/s, {eta}"
        if self.tty:
            filled = 30 * self.done_events // max(1, self.events)
            print(f"\r[{'#' * filled:30}] {text}\033[K", end="", file=sys.stderr, flush=True)
        else:
            print(f"batch_{task.number}: {events} events, {pulses} pulses; {text}",
                  file=sys.stderr, flush=True)

    def end(self):
        if self.tty and self.done_files:
            print(file=sys.stderr)


def run_tasks(tasks, jobs, out, progress):
    """Keeps all processes busy; after the first failure what is under way still ends well.
    Returns a sentence for each batch with damaged events."""
    notes, failure, busy = [], None, {}
    try:
        with processes(jobs, out) as idle:
            while True:
                while idle and failure is None and (task := next(tasks, None)):
                    pipe = idle.pop()
                    busy[pipe] = task
                    pipe.send(task)
                if not busy:
                    break
                for pipe in multiprocessing.connection.wait(list(busy)):
                    error, result = pipe.recv()
                    task = busy.pop(pipe)
                    idle.append(pipe)
                    failure = failure or error
                    if result:
                        progress.step(task, *result[:2])
                        notes += [result[2]] if result[2] else []
    except BaseException:
        for task in busy.values():
            remove_shard(out / f"batch_{task.number}.tmp")
        raise
    finally:
        progress.end()
    if failure:
        raise Bad(failure)
    return notes


def find_parts(folder):
    found = [name for name in ("train", "test") if (folder / f"{name}_meta.parquet").is_file()]
    if not found:
        raise Bad(f"{folder}: there is neither train_meta.parquet nor test_meta.parquet; expected "
                  "is the folder that Kaggle's archive unpacks to")
    parts = [Part(folder, name) for name in found]
    both = set(parts[0].events) & set(parts[-1].events)
    if len(parts) > 1 and both:
        raise Bad(f"{folder}: batch {min(both)} is in {parts[0].meta.name} and in "
                  f"{parts[1].meta.name}; expected is a number of its own for each batch")
    return parts


def write_geometry(xyz, out):
    path, half = out / "geometry.npy", out / "geometry.npy.tmp"
    try:
        save_array(half, xyz)
        if not path.exists():
            half.rename(path)
            sync_folder(out)
        elif path.read_bytes() != half.read_bytes():
            raise Bad(f"{path}: other positions than those of IN; choose another folder for OUT")
    finally:
        half.unlink(missing_ok=True)


class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise Bad(f"{message}; --help says what there is")


def parse_options():
    parser = Parser(description="Turns Kaggle's parquet files into shards for train_icecube.")
    parser.add_argument("folder", metavar="IN", type=Path,
                        help="sensor_geometry.csv, and train_meta.parquet with train/ or test's")
    parser.add_argument("out", metavar="OUT", type=Path, help="the shards; made where missing")
    parser.add_argument("--batches", metavar="LIST", help="only these, such as 1-5,7")
    parser.add_argument("--skip-bad", action="store_true", help="leave damaged events out")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)),
                        help="processes (default: one a core)")
    options = parser.parse_args()
    if not 1 <= options.jobs <= 1024:
        raise Bad(f"--jobs {options.jobs}: expected is 1 to 1024")
    return options


def convert(options):
    folder, out = options.folder, options.out
    xyz = read_geometry(folder / "sensor_geometry.csv")
    parts = find_parts(folder)
    chosen = choose_batches(options.batches, {k for part in parts for k in part.events})
    todo = [k for k in chosen if not (out / f"batch_{k}" / "done").exists()]
    for part, number in ((part, k) for part in parts for k in todo if k in part.events):
        if not part.batch(number).is_file():
            raise Bad(f"{part.batch(number)}: there is no such file, but {part.meta.name} has "
                      f"{part.events[number]} events of it; fetch it, or choose others with "
                      "--batches")
    out.mkdir(parents=True, exist_ok=True)
    lock(out, fcntl.LOCK_EX)
    write_geometry(xyz, out)
    os.close(lock(out / "geometry.npy", fcntl.LOCK_EX))  # nobody is left over
    if not todo:
        print(f"{out}: all {len(chosen)} files are converted already")
        return
    if len(todo) < len(chosen):
        print(f"{len(chosen) - len(todo)} of {len(chosen)} files are converted already")
    progress = Progress(len(todo), sum(part.events.get(k, 0) for part in parts for k in todo))
    tasks = (task for part in parts for task in part.tasks(todo, out, options.skip_bad))
    for note in run_tasks(tasks, min(options.jobs, len(todo)), out, progress):
        print(f"left out: {note}")
    print(f"{out}: {len(todo)} files, {progress.kept_events} events, {progress.kept_pulses} "
          f"pulses, {progress.rate():.0f} events/s")


def main():
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        convert(parse_options())
    except Bad as e:
        sys.exit(f"icecube_convert: {e}")
    except (EOFError, ConnectionError):
        sys.exit("icecube_convert: one of the processes was ended from outside, perhaps for want "
                 "of memory; the same command goes on, with fewer --jobs if need be")
    except OSError as e:
        sys.exit(f"icecube_convert: {e.filename or 'OUT'}: {e.strerror}")
    except KeyboardInterrupt:
        print("icecube_convert: interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
