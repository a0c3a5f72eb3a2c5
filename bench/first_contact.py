"""A long run against a server that misbehaves: each of its answers must be stored exactly once, and nothing may break.

    python bench/first_contact.py [--kills 100] [--outage 60] [--held 300] [--faults N] [--users 6000] [--seed 0]

1. Each fault alone: a run in which every second request meets it.
2. Kills: runs in which one request of four meets a fault, each killed at a random moment, while four readers query by
   `gr2 sql` and one process labels.
3. One run through an outage, and through a process that holds the store for minutes.
4. A full disk, and the same command again once there is room.

The store is on a small disk in memory. Mounting it needs the right to do so; without it, part 4 is skipped and its bar
is missed. A special API key is planted in responses, and searched for in every file and every column afterwards.
"""

import argparse
import os
import random
import secrets
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fault_server import NAMES, NUMBER, FaultServer
from kill_resume import LABELLER, watch
from measure import GR2, Bars

from store import Store
from store.journals import read_lines, rejected_lines

KEY_NAME = "GR2_BENCH_KEY"
DISK_MB = 3000
# An answer that was written just before a kill need not have reached the journal.
JOURNALLED_WITHIN_S = 1.0
READER = """
import os, subprocess, sys
reads = 0
while not os.path.exists(sys.argv[2]):
    words = ["sql", "select teacher, count(*), avg(length(completion)) from traces group by all"]
    command = [sys.executable, "-m", "app.cli", *words, "--store", sys.argv[1]]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    reads += 1
print(reads)
"""
HOLDER = """
import sys, time
from store import Store
with Store.open(sys.argv[1]).writing() as session:
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


class Contact:
    """A store, the server, and the problems that were found so far."""

    def __init__(self, disk: Path, seed: int) -> None:
        self.key = f"sk-{secrets.token_hex(20)}"
        self.environment = {**os.environ, KEY_NAME: self.key, "NO_PROXY": "127.0.0.1"}
        self.store = Store(disk / "store")
        self.server = FaultServer(self.key, seed)
        self.chance = random.Random(seed)
        self.killed_at: list[float] = []
        self.wrong: list[str] = []
        self.said: list[str] = []
        self.lists = 0

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Start `gr2 ...` on this store in the background."""
        return subprocess.Popen(
            [*GR2, *words, "--store", str(self.store.folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment,
        )

    def trace(self, *words: str) -> subprocess.Popen[str]:
        """Start a run of `gr2 trace` with a timeout of four seconds."""
        teacher = ["--teacher", "openai", "--model", "m", "--base-url", self.server.url, "--api-key-env", KEY_NAME]
        limits = [
            "--timeout",
            "4",
            "--concurrency",
            "16",
            "--ruleset",
            "answered",
            "--max-attempts",
            "1",
            "--lists",
            "all",
        ]
        return self.start("trace", "demo", *teacher, *limits, *words)

    def finish(self, process: subprocess.Popen[str], what: str, *codes: int, timeout_s: float = 900) -> int:
        """Wait for a process, whose exit code must be one of `codes`, without a traceback."""
        try:
            out, err = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            self.wrong.append(f"{what} did not end within {timeout_s:g} s")
        self.said += [out, err]
        if process.returncode not in codes or "Traceback" in out + err:
            self.wrong.append(f"{what} ended with {process.returncode}: {err[-2000:]}")
        return process.returncode

    def more_lists(self, number: int) -> tuple[str, str]:
        """Return the option that gives this many further lists to the next run."""
        self.lists += number
        return "--limit", str(self.lists)


def main() -> None:
    """Run the four parts and check the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--outage", type=float, default=60.0, help="seconds")
    parser.add_argument("--held", type=float, default=300.0, help="seconds")
    parser.add_argument("--faults", type=int, default=len(NAMES), help="so many alone; all take part in the mixture")
    parser.add_argument("--users", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with small_disk() as (disk, is_small):
        contact = Contact(disk, options.seed)
        for words in (
            ["simulate", "demo", "--users", str(options.users), "--items", "400"],
            ["sids", "demo"],
            ["candidates", "demo"],
        ):
            contact.finish(contact.start(*words), " ".join(words), 0)
        meet_each_fault(contact, NAMES[: options.faults])
        die_often(contact, options.kills)
        wait_long(contact, options.outage, options.held)
        if is_small:
            fill_the_disk(contact, disk)
        bars = Bars()
        bars.at_least("a small disk that was filled", is_small, 1)
        bars.at_least("faults", len(NAMES), 60)
        check(contact, bars)
        print(*contact.wrong, sep="\n")
        sys.exit(not bars.met)


@contextmanager
def small_disk() -> Iterator[tuple[Path, bool]]:
    """Yield a folder, and whether it is on a small disk that could be mounted."""
    with tempfile.TemporaryDirectory() as temporary:
        options = ["-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", temporary]
        is_small = subprocess.run(["mount", *options], check=False, capture_output=True).returncode == 0
        try:
            yield Path(temporary), is_small
        finally:
            if is_small:
                subprocess.run(["umount", "--lazy", temporary], check=True)


def meet_each_fault(contact: Contact, names: Sequence[str]) -> None:
    """Run once for each fault. A run that meets the fault before any answer may end at once with exit code 2."""
    started = time.monotonic()
    for name in names:
        contact.server.only = name
        words = contact.more_lists(8)
        if contact.finish(contact.trace(*words), f"the run with {name!r}", 0, 2) == 2:
            contact.finish(contact.trace(*words), f"the second run with {name!r}", 0, 2)
    contact.server.only = None
    contact.finish(contact.trace(*contact.more_lists(0)), "the run after all faults", 0)
    print(f"each of {len(names)} faults alone: {time.monotonic() - started:.0f} s", flush=True)


def die_often(contact: Contact, kills: int) -> None:
    """Kill runs, with four readers and a labeller beside them."""
    started, stop = time.monotonic(), contact.store.folder.with_name("stop")
    watchers = [watch(code, contact.store.folder, stop) for code in (LABELLER, *[READER] * 4)]
    contact.server.mix = 0.25
    contact.more_lists(12_000)
    while len(contact.killed_at) < kills:
        before = contact.server.account.started
        process = contact.trace(*contact.more_lists(0))
        while contact.server.account.started == before and process.poll() is None:
            time.sleep(0.05)
        try:
            process.wait(contact.chance.uniform(0.0, 5.0))
        except subprocess.TimeoutExpired:
            # The time is taken before the signal, so that no later answer is expected to have arrived.
            contact.killed_at.append(time.monotonic())
            process.kill()
            process.communicate()
        else:
            contact.finish(process, "a run that nobody killed", 0)
            contact.more_lists(1000)
    stop.touch()
    counts = []
    for watcher in watchers:
        out, err = watcher.communicate(timeout=300)
        if watcher.returncode != 0:
            contact.wrong.append(f"a process beside the runs failed: {err[-2000:]}")
        counts.append(int(out or 0))
    with contact.store.reading() as session:
        [labels] = session.connection.execute("select count(*) from labels.label_events").fetchone() or [0]
    if labels != counts[0]:
        contact.wrong.append(f"{counts[0]} labels were written, and {labels} are there")
    seconds = time.monotonic() - started
    print(f"{kills} kills: {seconds:.0f} s, {labels} labels, {sum(counts[1:])} queries", flush=True)


def wait_long(contact: Contact, outage_s: float, held_s: float) -> None:
    """Take the server away from one run for a while, and its store for longer."""
    started = time.monotonic()
    process = contact.trace(*contact.more_lists(6_000))
    time.sleep(8)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(contact.store.folder), str(held_s)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    holder.stdout.readline()
    time.sleep(5)
    contact.server.stop()
    time.sleep(outage_s)
    contact.server.restart()
    contact.finish(process, "the run through an outage and a store that is held", 0, timeout_s=held_s + 1200)
    holder.communicate()
    print(f"an outage of {outage_s:g} s, a store held for {held_s:g} s: {time.monotonic() - started:.0f} s", flush=True)


def fill_the_disk(contact: Contact, disk: Path) -> None:
    """Fill the disk during a run, and run again with room."""
    started = time.monotonic()
    process = contact.trace(*contact.more_lists(6_000))
    time.sleep(6)
    ballast = disk / "ballast"
    try:
        with ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(256 * 1024))
    except OSError:
        pass
    contact.finish(process, "the run on a full disk", 1)
    contact.finish(contact.trace(*contact.more_lists(0)), "the run that begins on a full disk", 1)
    ballast.unlink()
    contact.server.mix = 0.0
    contact.finish(contact.trace(*contact.more_lists(0)), "the run once there is room", 0)
    print(f"a full disk: {time.monotonic() - started:.0f} s", flush=True)


def check(contact: Contact, bars: Bars) -> None:
    """Compare the store with the server's account, and search for the key."""
    account = contact.server.account
    with contact.store.reading() as session:
        rows = session.connection.execute(
            "select completion, prompt_tokens from traces where completion is not null"
        ).fetchall()
        [twice] = session.connection.execute("select count(*) - count(distinct trace_id) from traces").fetchone() or [1]
    stored: Counter[int] = Counter()
    tokens: dict[int, int | None] = {}
    unnumbered = 0
    for completion, count in rows:
        number = NUMBER.search(completion)
        if number is None:
            unnumbered += 1
        else:
            stored[int(number[1])] += 1
            tokens[int(number[1])] = count
    missing = [number for number in account.sent if number not in stored]
    at_kill = [
        number
        for number in missing
        if any(-0.5 <= moment - account.sent[number].time <= JOURNALLED_WITHIN_S for moment in contact.killed_at)
    ]
    print(
        f"       {account.started:,} requests, {sum(map(bool, account.requests)):,} kinds of faults met, "
        f"{len(account.sent):,} answers, {len(contact.killed_at)} kills with {len(at_kill)} answers under way"
    )
    bars.at_most("things that went wrong", len(contact.wrong), 0)
    bars.at_most("answers lost", len(missing) - len(at_kill), 0)
    bars.at_most("answers stored twice", sum(stored.values()) - len(stored) + twice, 0)
    bars.at_most("answers stored that were never given", unnumbered + len(stored.keys() - account.sent.keys()), 0)
    differ = [
        number for number in stored if number in account.sent and tokens[number] != account.sent[number].prompt_tokens
    ]
    bars.at_most("answers whose tokens differ from the server's account", len(differ), 0)
    bars.at_most("journal lines rejected", sum(rejected_lines(contact.store.journals).values()), 0)
    bars.at_most("places with a part of the key", len(places_of(contact)), 0)
    for number in (missing + differ)[:10]:
        print(f"       answer {number}: {account.sent[number]}, stored with {tokens.get(number)} tokens")


def places_of(contact: Contact) -> list[str]:
    """Return the files, columns and outputs that contain eight characters of the key in a row."""
    secret = contact.key.removeprefix("sk-").lower()
    parts = [secret[start : start + 8] for start in range(len(secret) - 7)]
    places = [f"output: {text[:200]}" for text in contact.said if any(part in text.lower() for part in parts)]
    for path in filter(Path.is_file, contact.store.folder.rglob("*")):
        data = path.read_bytes()
        if path.suffix == ".zst" and ".jsonl" in path.name:
            data = b"".join(line for line, _ in read_lines(path, 0))
        data = data.lower()
        places += [str(path)] if any(part.encode() in data for part in parts) else []
    with contact.store.reading() as session:
        columns = session.connection.execute(
            "select database_name, schema_name, table_name, column_name from duckdb_columns() "
            "where data_type = 'VARCHAR' and not internal"
        ).fetchall()
        for database, schema, table, column in columns:
            row = session.connection.execute(
                f'select count(*) from "{database}"."{schema}"."{table}" where regexp_matches(lower("{column}"), ?)',
                ["|".join(parts)],
            ).fetchone()
            places += [f"{table}.{column}"] if row and row[0] else []
    for place in places:
        print(f"       the key is in {place}")
    return places


if __name__ == "__main__":
    main()
