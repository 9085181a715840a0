"""Requests planned against more and more rows."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from speed.rounds import Row, Setting, growth

# Plans one request in a process of its own: where, rows, ids asked for and the folder of shards are its arguments.
PLANNING = """
import json, sys, time
import numpy as np, pyarrow as pa, pyarrow.compute as pc
from hf_unlearn.data.shards import request_rows_in_shards
from hf_unlearn.data.splits import request_rows
where, rows, requested, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
asked = np.random.default_rng(0).choice(rows, requested, replace=False).astype(str).tolist()
request_rows(["a"], ["a"])  # what is imported on first use is not timed
started = time.process_time()  # of the processor, whatever else runs beside
if where == "shards":
    found = request_rows_in_shards([f"{folder}/{rows}.parquet"], asked).count
else:
    found = len(request_rows(pc.cast(pa.array(np.arange(rows)), pa.string()), asked))
assert found == requested
seconds = time.process_time() - started
status = open("/proc/self/status") if sys.platform == "linux" else ()
peak = next((int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM")), float("nan"))
print(json.dumps([seconds, peak]))
"""


def plannings(setting: Setting, folder: str) -> Iterator[Row]:
    """A request against more and more rows: how processor time and a whole process's peak memory grow."""
    sizes = (10_000, 30_000) if setting.small else (1_000_000, 3_000_000, 10_000_000, 100_000_000)
    for where in ("memory", "shards"):
        scripts = {}
        for rows in sizes if where == "shards" else sizes[:3]:
            if where == "shards":
                write_ids(Path(folder) / f"{rows}.parquet", rows)
            scripts[rows] = [PLANNING, where, str(rows), str(sizes[0]), folder]
        yield from growth(setting, f"Request of {sizes[0]:,} ids, planned in {where}", "rows", scripts)


def write_ids(path: Path, rows: int) -> None:
    """A parquet shard of numbered ids."""
    with pq.ParquetWriter(path, pa.schema({"id": pa.string()})) as writer:
        for start in range(0, rows, 1_000_000):
            ids = pc.cast(pa.array(np.arange(start, min(start + 1_000_000, rows))), pa.string())
            writer.write_table(pa.table({"id": ids}))
