"""What each behaviour earns under each reward, written to docs/benchmarks/rewards.md, and how fast rewards are.

    python bench/reward_table.py

All completions are judged as text, as in training. Exit status 1 if a bar is missed.
"""

import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

from measure import Bars

from prompts.completion import render_completion
from prompts.semantic_ids import render_sid
from train.dapo.rewards import REWARDS, RewardFunction

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks" / "rewards.md"
CANDIDATES = [render_sid((n, 7, 23, 4)) for n in range(10)]
FOREIGN = render_sid((99, 7, 23, 4))
DRAWS = 300
SHOWN = [name for name in REWARDS.builtin if not name.startswith("overlong")]
BATCH, GROUPS = 8, 250


def answer(sids: list[str]) -> str:
    """Return a completion that gives this order and cites a shown item."""
    return render_completion(f"{CANDIDATES[0]} is a candidate.", sids)


def shuffled(seed: int) -> list[str]:
    """Return the candidates in a seeded random order."""
    return random.Random(seed).sample(CANDIDATES, len(CANDIDATES))


def first(sid: str) -> list[str]:
    """Return the candidates with one moved to the front."""
    return [sid, *(other for other in CANDIDATES if other != sid)]


# The completions of each behaviour for a target. Only the first two behaviours depend on the target.
BEHAVIOURS: dict[str, Callable[[str], list[str]]] = {
    "target moved to the front": lambda target: [answer(first(target))],
    "target alone, the rest left out": lambda target: [answer([target])],
    "order copied": lambda _: [answer(CANDIDATES)],
    "last two swapped": lambda _: [answer([*CANDIDATES[:-2], CANDIDATES[-1], CANDIDATES[-2]])],
    "third moved to the front": lambda _: [answer(first(CANDIDATES[2]))],
    "first moved to the end": lambda _: [answer([*CANDIDATES[1:], CANDIDATES[0]])],
    "reversed": lambda _: [answer(CANDIDATES[::-1])],
    "random": lambda _: [answer(shuffled(seed)) for seed in range(DRAWS)],
    "first five, each twice": lambda _: [answer([*CANDIDATES[:5], *CANDIDATES[:5]])],
    "copied, with an unknown ID for the last": lambda _: [answer([*CANDIDATES[:-1], FOREIGN])],
    "copied, cut off in the list": lambda _: [answer(CANDIDATES)[:-200]],
}


def expected(name: str, behaviour: Callable[[str], list[str]]) -> float:
    """Return the mean reward of a behaviour over targets at every rank of the list, all equally likely."""
    completions, targets = [], []
    for target in CANDIDATES:
        written = behaviour(target)
        completions += written
        targets += [target] * len(written)
    reward = RewardFunction(name)
    rewards = reward([None] * len(targets), completions, candidates=[CANDIDATES] * len(targets), target=targets)
    return sum(rewards) / len(rewards)


def render_page() -> str:
    """Return the text of docs/benchmarks/rewards.md."""
    lines = [f"| behaviour | {' | '.join(SHOWN)} |", "|---|" + "---:|" * len(SHOWN)]
    for what, behaviour in BEHAVIOURS.items():
        values = " | ".join(f"{expected(name, behaviour):.2f}" for name in SHOWN)
        lines.append(f"| {what} | {values} |")
    return f"""\
# What each reward pays for

`python bench/reward_table.py` writes this page.

Each figure is the mean reward of one behaviour, on lists of ten candidates with one target and a format weight
(alpha) of 0.2. Targets at ranks 1 to 10 are equally likely, and the random order is averaged over {DRAWS} seeded
draws for each rank. The first two behaviours know the target. The others do not look at the user at all. Formulas and
sources are in `train/dapo/rewards.py`.

{chr(10).join(lines)}

- **Copying the order.** Under `unconditional` a copy earns alpha on every list, so a model can collect it without
  ranking anything. Under `conditional` a copy earns alpha only if the target is already first, here on a tenth of the
  lists, and 0 otherwise. Under `auc` and `ndcg` no permutation earns less than a copy, unless the copy is already the
  best order. `format_gated` pays for permutations as `unconditional` does, so it does not stop this hack.
- **Fixed orders.** An order that ignores the user loses at some ranks what it gains at others, so its promotion
  R_rank averages 0. Under `unconditional`, `conditional` and `format_gated` it therefore earns at most alpha. One
  fixed order earns all of it under `conditional`: moving the first candidate to the end promotes every other rank. If
  the target is first with probability q, this order earns 1/10 - q + alpha and copying earns alpha q. It beats
  copying as long as q is below (1/10 + alpha) / (1 + alpha), here 0.25. With a strong pre-ranker q is higher, and
  copying pays more.
- **Near copies.** `auc` and `ndcg` detect only an exact copy. A copy with the last two swapped earns as much as a
  random order, so a model can stop copying without learning anything. Watch R_rank as well.
- **Incomplete answers.** Under `unconditional` and `conditional`, an answer that names only the target, or names it
  first and is then cut off, keeps its R_rank and loses only alpha. Under `format_gated` it earns -1. The same order
  in full never earns less, so an incomplete answer only saves tokens.
- **Within a group** of completions for one prompt, the list is the same. R_rank and the AUC of one target then differ
  only by a constant and a scale, and give the same normalised advantages; `ndcg` gives more weight to the top.
  `unconditional`, `conditional`, `format_gated` and `auc` differ in the bonus, in what a copy earns, and in what an
  answer earns that is not a permutation.
- **`chain`** does not know the target and pays the same for every permutation. Use it together with another reward.
"""


def measure_speed(bars: Bars) -> None:
    """Measure completions per second on one core, in groups of eight, each with a separate candidate list."""
    cited = [f"{sid} fits {CANDIDATES[n - 1]}." for n, sid in enumerate(CANDIDATES[:6])]
    completions = [render_completion(" ".join(cited), shuffled(seed)) for seed in range(BATCH * GROUPS)]
    lists = [shuffled(-1 - group) for group in range(GROUPS) for _ in range(BATCH)]
    targets = [CANDIDATES[n % 10] for n in range(len(completions))]
    token_ids = [range(300)] * len(completions)
    for name in REWARDS.builtin:
        reward = RewardFunction(name)
        seconds = []
        for _ in range(5):
            started = time.process_time()
            reward(targets, completions, candidates=lists, target=targets, completion_ids=token_ids)
            seconds.append(time.process_time() - started)
        bars.at_least(f"{name}: completions a second and core", len(completions) / min(seconds), 20_000)


def main() -> None:
    """Write the page, then measure."""
    PAGE.write_text(render_page(), encoding="utf-8")
    print(f"       wrote {PAGE.name}")
    bars = Bars()
    measure_speed(bars)
    sys.exit(not bars.met)


if __name__ == "__main__":
    main()
