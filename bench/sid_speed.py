"""Semantic IDs against the project's bars: unique on real data, trained in time, and a million vectors encoded.

    python bench/sid_speed.py

Real data come from GR2_DATA or ../shared/data. The synthetic part turns vectors of 64 dimensions into unique IDs by an
RQ-VAE of the default size, for a quarter, a half and a whole million vectors. Each size runs in a separate process,
which gives its own peak memory. Exit status 1 if a bar is missed.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from measure import DATA, Bars, measure

from curate.sids.versions import list_versions
from store import Store

DIMENSIONS = 64
SIZES = (250_000, 500_000, 1_000_000)


def main() -> None:
    """Check real data, then synthetic vectors."""
    if len(sys.argv) > 1:
        encode(int(sys.argv[1]))
        return
    bars = Bars()
    if DATA.is_dir():
        check_real(bars)
    else:
        print(f"       no real data in {DATA}; set GR2_DATA to the folder that holds it")
    peaks = []
    for size in SIZES:
        seconds, peak_mb = encode_apart(size)
        print(f"       {size:,} vectors to IDs: {seconds:.1f} s, peak {peak_mb:,.0f} MB")
        peaks.append(peak_mb)
    bars.at_most("1,000,000 vectors encoded, seconds", seconds, 60)
    # The second step is twice as large. With linear growth it adds twice as much, a ratio of 1; with quadratic growth
    # it adds four times as much, a ratio of 2.
    bars.at_most("memory that the last step adds, over twice that of the step before", growth(peaks), 1.5)
    sys.exit(not bars.met)


def check_real(bars: Bars) -> None:
    """Check uniqueness with EMA and a drawn last level, and the training time on Beauty."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = str(Path(temporary) / "store")
        for name in ("beauty", "sports", "ml-100k"):
            files = DATA / name
            measure(
                "ingest", name, "--items", str(files / "items.jsonl"),
                "--interactions", str(files / "interactions.csv.gz"), "--store", folder,
            )  # fmt: skip
            measurement = measure("sids", name, "--method", "rq-vae", "--store", folder)
            if name == "beauty":
                bars.at_most("beauty: RQ-VAE, whole command, seconds", measurement.seconds, 180)
            else:
                print(f"       {name}: RQ-VAE, whole command, seconds: {measurement.seconds:.1f} (no bar)")
        for name, value in list_versions(Store.open(folder)).select("dataset", "uniqueness").rows():
            bars.at_least(f"{name}: uniqueness", value, 0.999)


def encode_apart(size: int) -> tuple[float, float]:
    """Encode in a separate process. Returns the seconds of encoding, and the peak memory of the process in MB."""
    process = subprocess.Popen([sys.executable, __file__, str(size)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    seconds = float(process.stdout.read())
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    process.stdout.close()
    if process.returncode != 0:
        sys.exit(f"encoding {size:,} vectors failed")
    return seconds, usage.ru_maxrss / 1024


def growth(peaks: list[float]) -> float:
    """Return the growth of the last doubling, divided by twice the growth of the doubling before."""
    first, second, third = peaks
    return (third - second) / (2 * (second - first))


def encode(size: int) -> None:
    """Fit on a hundredth of the vectors, then give every vector an ID."""
    from curate.sids.quantizers import nearest_codes  # noqa: PLC0415
    from curate.sids.unique_codes import complete_codes  # noqa: PLC0415
    from train.sids.rq_vae_training import RqVaeQuantizer  # noqa: PLC0415

    random = np.random.default_rng(0)
    centres = random.normal(size=(1_000, DIMENSIONS)).astype(np.float32)
    vectors = centres[random.integers(1_000, size=size)]
    vectors += 0.3 * random.standard_normal(vectors.shape, dtype=np.float32)
    quantizer = RqVaeQuantizer(epochs=3)
    fitted, _ = quantizer.fit(vectors[:10_000], np.zeros((0, 2), np.int64), lambda _: None)
    started = time.perf_counter()
    latents = fitted.encode(vectors)
    codes = nearest_codes(latents, fitted.codebooks)
    ids, _ = complete_codes(codes, latents, fitted.codebooks, codebook_size=256, random_levels=1, seed=0)
    print(time.perf_counter() - started)
    # This check comes after the clock has stopped. Each ID becomes one number.
    assert len(np.unique(ids.astype(np.int64) @ 256 ** np.arange(4))) == size


if __name__ == "__main__":
    main()
