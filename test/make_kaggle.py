"""For test_icecube_convert: small folders in Kaggle's layout, good and bad, and an independent
look at what the converter made. For measuring it, one with files of Kaggle's size.

    make_kaggle.py make FOLDER      FOLDER/good, and FOLDER/NAME for each bad one
    make_kaggle.py check IN OUT     exit status 1 where the shards in OUT are not what IN has
    make_kaggle.py large FOLDER     4 batches of 200,000 events of 100 pulses; 0.4 GB

The good one has batches 1 and 2 of train, 3 of test, each of 12 events. What is in them follows
from batch k, event i and pulse j alone; the C side knows the same formulas.
"""
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

EVENTS, SENSORS = 12, 5160
LARGE = 140_000  # pulses of batch 2's event 5: more than the converter reads at a time


def batch(k):
    n = np.array([LARGE if (k, i) == (2, 5) else 1 + (7 * i + 3 * k) % 9 for i in range(EVENTS)])
    i = np.repeat(np.arange(EVENTS), n)
    end = np.cumsum(n)
    j = np.arange(end[-1]) - np.repeat(end - n, n)
    event = np.arange(EVENTS)
    ids = 1000 * k + 10 * event + 4
    pulses = {"sensor_id": ((97 * i + 13 * j) % SENSORS).astype(np.int16),
              "time": 9000 + 40 * i + 3 * j,
              "charge": 0.125 * (1 + (i + j) % 40),
              "auxiliary": (i + j) % 3 == 0,
              "event_id": ids[i]}
    rows = {"batch_id": np.full(EVENTS, k), "event_id": ids, "first_pulse_index": end - n,
            "last_pulse_index": end - 1}
    if k != 3:
        rows |= {"azimuth": 0.5 * event, "zenith": 0.25 * event}
    return rows, pulses


class Kaggle:
    """A folder's contents, to be spoilt before they are written."""

    def __init__(self):
        rows, self.pulses = {}, {}
        for k in (1, 2, 3):
            rows[k], self.pulses[k] = batch(k)
        self.train = {c: np.concatenate([rows[1][c], rows[2][c]]) for c in rows[1]}
        self.test = rows[3]
        self.geometry = ["sensor_id,x,y,z"] + [
            f"{s},{s // 60 * 10}.5,{s % 7 * 100}.25,{s % 60 * 17}.125" for s in range(SENSORS)]

    def write(self, folder):
        for part, rows, numbers in (("train", self.train, (1, 2)), ("test", self.test, (3,))):
            (folder / part).mkdir(parents=True)
            pq.write_table(pa.table(rows), folder / f"{part}_meta.parquet", row_group_size=7)
            for k in numbers:
                pq.write_table(pa.table(self.pulses[k]), folder / part / f"batch_{k}.parquet",
                               row_group_size=30_000)
        (folder / "sensor_geometry.csv").write_text("\n".join(self.geometry) + "\n")


def pulse(column, value, event=3, k=1):
    """Spoils the last pulse of an event."""
    def spoil(d):
        column_type = np.float64 if column == "charge" else np.int64
        d.pulses[k][column] = d.pulses[k][column].astype(column_type)
        d.pulses[k][column][d.train["last_pulse_index"][event + EVENTS * (k - 1)]] = value
    return spoil


def row(column, value, event):
    def spoil(d):
        d.train[column][event] = value
    return spoil


def shift(column, by, event):
    def spoil(d):
        d.train[column][event] += by
    return spoil


def spoil_all(*spoils):
    def spoil(d):
        for one in spoils:
            one(d)
    return spoil


def orphan(d):
    """Pulses of event 1 as if they were of an event that the table has not."""
    d.pulses[1]["event_id"][d.pulses[1]["event_id"] == 1014] = 1015


def scatter(d):
    """Event 10's last pulse changes places with event 11's first."""
    at = d.train["last_pulse_index"][10]
    d.pulses[1]["event_id"][[at, at + 1]] = d.pulses[1]["event_id"][[at + 1, at]]


def without(table, column):
    return lambda d: table(d).pop(column)


def retype(table, column, change):
    def spoil(d):
        table(d)[column] = change(table(d)[column])
    return spoil


def geometry(change):
    def spoil(d):
        change(d.geometry)
    return spoil


def train(d):
    return d.train


def first(d):
    return d.pulses[1]


def replace(at, text):
    return lambda lines: lines.__setitem__(at, text)


BAD = {
    "pulses": spoil_all(pulse("sensor_id", 5160, 0), pulse("sensor_id", -1, 2),
                        pulse("time", -1, 4), pulse("time", 2**31, 5),
                        pulse("charge", np.nan, 6), pulse("charge", np.inf, 7),
                        pulse("charge", -0.5, 8), pulse("charge", 1e39, 9),
                        pulse("sensor_id", 5161, 5, 2)),
    "rows": spoil_all(shift("first_pulse_index", 1, 0), orphan, shift("last_pulse_index", 1, 3),
                      row("last_pulse_index", 1000, 4), row("last_pulse_index", 0, 5),
                      row("event_id", 1079, 7), row("zenith", -0.1, 8), row("azimuth", 6.2832, 9),
                      scatter),
    "directions": spoil_all(row("azimuth", np.nan, 1), row("zenith", np.nan, 2),
                            row("zenith", 3.1416, 3)),
    "doubled": spoil_all(row("event_id", 1044, 6), row("event_id", 1014, 14)),
    "limits": spoil_all(pulse("sensor_id", 5159), pulse("time", 2**31 - 1), pulse("charge", 0.0),
                        row("azimuth", 2 * np.pi, 3), row("zenith", np.pi, 3)),
    "unordered": lambda d: d.train.update({c: a[::-1] for c, a in d.train.items()}),
    "hopeless": retype(first, "time", np.negative),
    "geometry-column": geometry(replace(0, "sensor_id,x,y,depth")),
    "geometry-lost": geometry(lambda lines: lines.pop(78)),
    "geometry-doubled": geometry(replace(6, "4,0,0,0")),
    "geometry-unknown": geometry(replace(6, "5160,0,0,0")),
    "geometry-nan": geometry(replace(6, "5,0,nan,0")),
    "geometry-text": geometry(replace(6, "5,here,0,0")),
    "no-charge": without(first, "charge"),
    "no-zenith": without(train, "zenith"),
    "half-test": lambda d: d.test.update(azimuth=np.zeros(EVENTS)),
    "time-type": retype(first, "time", np.float64),
    "sensor-type": retype(first, "sensor_id", lambda a: a.astype(str)),
    "auxiliary-type": retype(first, "auxiliary", np.int64),
    "row-type": retype(train, "event_id", np.float64),
    "null": retype(first, "time", lambda a: pa.array(a, mask=np.arange(len(a)) == 5)),
    "no-rows": lambda d: d.train.update({c: a[:0] for c, a in d.train.items()}),
    "both": lambda d: d.test.update(batch_id=np.full(EVENTS, 2)),
}


def make(folder):
    for name, spoil in {"good": lambda d: None, **BAD}.items():
        d = Kaggle()
        spoil(d)
        d.write(folder / name)
    for name in ("truncated", "truncated-table", "empty", "no-file", "no-geometry", "no-table"):
        Kaggle().write(folder / name)
    table, path = Path("train_meta.parquet"), Path("train", "batch_2.parquet")
    for name, cut in (("truncated", path), ("truncated-table", table)):
        whole = (folder / "good" / cut).read_bytes()
        (folder / name / cut).write_bytes(whole[:len(whole) // 2])
    (folder / "empty" / path).write_bytes(b"")
    (folder / "no-file" / path).unlink()
    (folder / "no-geometry" / "sensor_geometry.csv").unlink()
    for part in ("train", "test"):
        (folder / "no-table" / f"{part}_meta.parquet").unlink()


def large(folder, batches=4, events=200_000, pulses=100):
    rng = np.random.default_rng(0)
    n = events * pulses
    time = 10_000 + np.sort(rng.exponential(3000, (events, pulses)).astype(int), 1).ravel()
    table = {"sensor_id": rng.integers(0, SENSORS, n, np.int16), "time": time,
             "charge": 0.025 * rng.integers(1, 200, n), "auxiliary": rng.random(n) < 0.7}
    (folder / "train").mkdir(parents=True)
    for k in range(batches):
        ids = np.repeat(np.arange(events * k, events * (k + 1)), pulses)
        pq.write_table(pa.table({**table, "event_id": ids}),
                       folder / "train" / f"batch_{k}.parquet")
    event = np.arange(events * batches)
    start = event % events * pulses
    pq.write_table(pa.table({"batch_id": event // events, "event_id": event,
                             "first_pulse_index": start, "last_pulse_index": start + pulses - 1,
                             "azimuth": 2 * np.pi * rng.random(len(event)),
                             "zenith": np.pi * rng.random(len(event))}),
                   folder / "train_meta.parquet")
    (folder / "sensor_geometry.csv").write_text("\n".join(Kaggle().geometry) + "\n")


def check(given, made):
    """Event by event, in the table's order."""
    lines = (given / "sensor_geometry.csv").read_text().split()[1:]
    table = np.array([[float(word) for word in line.split(",")] for line in lines])
    assert (np.load(made / "geometry.npy") == table[:, 1:].astype(np.float32)).all()
    n = 0
    for part in ("train", "test"):
        for event in pq.read_table(given / f"{part}_meta.parquet").to_pylist():
            k, first_pulse = event["batch_id"], event["first_pulse_index"]
            shard = {f.stem: np.load(f) for f in (made / f"batch_{k}").glob("*.npy")}
            pulses = pq.read_table(given / part / f"batch_{k}.parquet").slice(
                first_pulse, event["last_pulse_index"] + 1 - first_pulse)
            i, = np.flatnonzero(shard["event_id"] == event["event_id"])
            here = slice(*shard["offsets"][i:i + 2])
            for column, dtype in (("sensor_id", "i2"), ("time", "i4"), ("charge", "f4"),
                                  ("auxiliary", "u1")):
                values = pulses[column].to_numpy()
                assert shard[column].dtype == dtype, (k, column)
                assert (shard[column][here] == values.astype(dtype)).all(), (event, column)
                assert column == "charge" or (values == values.astype(dtype)).all(), column
            direction = [event.get("azimuth", np.nan), event.get("zenith", np.nan)]
            assert np.array_equal(shard["direction"][i], np.float32(direction), True), event
            n += 1
    print(f"{n} events are the same")


if __name__ == "__main__":
    {"make": make, "check": check, "large": large}[sys.argv[1]](*map(Path, sys.argv[2:]))
