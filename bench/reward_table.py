"""What each policy earns under each reward, written to docs/benchmarks/rewards.md, and how fast rewards are.

    python bench/reward_table.py

Everything goes through completions as text, as in training. Exit status 1 if a bar is missed.
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
SHOWN = [name for name in REWARDS if name != "overlong"]
BATCH, GROUPS = 8, 250


def answer(sids: list[str]) -> str:
    """A completion that gives this order and cites something shown."""
    return render_completion(f"{CANDIDATES[0]} is a candidate.", sids)


def shuffled(seed: int) -> list[str]:
    """The candidates in a seeded random order."""
    return random.Random(seed).sample(CANDIDATES, len(CANDIDATES))


def first(sid: str) -> list[str]:
    """The candidates with one moved to the front."""
    return [sid, *(other for other in CANDIDATES if other != sid)]


# What each policy writes for a target; only the first two rows look at it.
POLICIES: dict[str, Callable[[str], list[str]]] = {
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


def expected(name: str, policy: Callable[[str], list[str]]) -> float:
    """The mean reward of a policy over targets at every rank of the list, all equally likely."""
    completions, targets = [], []
    for target in CANDIDATES:
        written = policy(target)
        completions += written
        targets += [target] * len(written)
    reward = RewardFunction(name)
    rewards = reward([None] * len(targets), completions, candidates=[CANDIDATES] * len(targets), target=targets)
    return sum(rewards) / len(rewards)


def render_page() -> str:
    """docs/benchmarks/rewards.md."""
    lines = [f"| policy | {' | '.join(SHOWN)} |", "|---|" + "---:|" * len(SHOWN)]
    for what, policy in POLICIES.items():
        values = " | ".join(f"{expected(name, policy):.2f}" for name in SHOWN)
        lines.append(f"| {what} | {values} |")
    return f"""\
# What policies earn

`python bench/reward_table.py` writes this page. Ten candidates, alpha .2, one target; each figure is the mean reward
over targets at ranks 1 to 10 of the list, all equally likely, and for the random order over {DRAWS} seeded draws at
each rank. The first two policies know the target; no other looks at the user at all. Formulas and sources:
`train/dapo/rewards.py`.

{chr(10).join(lines)}

- **Copying.** Under `unconditional` it earns alpha on every list: the hack. Under `conditional` it earns alpha where
  the target is first already, here on a tenth of the lists, and exactly nothing on any other. Under `auc` and `ndcg`
  no permutation earns less, wherever a better one exists. `format_gated` pays permutations as `unconditional` does:
  it does not close this hack.
- **Orders fixed beforehand.** What a fixed order gives to one rank it takes from others: R_rank averages 0, so none
  earns more than alpha under `unconditional`, `conditional` and `format_gated`. Under `conditional` one earns all of
  it: the first moved to the end promotes every other rank. Where the target is first with probability q, it earns
  1/10 - q + alpha and copying alpha q, so it beats copying while q is below (1/10 + alpha) / (1 + alpha), here .25: a
  strong pre-ranker closes it.
- **Near copies.** The copy clause of `auc` and `ndcg` catches the exact copy only. With the last two swapped a copy
  earns what a random order earns, so a model can leave the copy without learning anything: watch R_rank beside them.
- **The gate.** Under `unconditional` and `conditional` the target alone, or first in an answer cut short, keeps its
  R_rank and lacks only alpha; under `format_gated` it earns -1. In full the same order never earns less, so this
  saves tokens, no more.
- **Within a group** the list is the same, so R_rank and the AUC of one target differ by a constant and a scale, and
  give the same normalised advantages; `ndcg` weighs the top more. What sets `unconditional`, `conditional`,
  `format_gated` and `auc` apart is the bonus, the copy clause and what is no permutation.
- **The chain** does not know the target and pays every permutation alike: it is for use beside another reward.
"""


def measure_speed(bars: Bars) -> None:
    """Completions a second of one core, in groups of eight, each with a candidate list of its own."""
    cited = [f"{sid} fits {CANDIDATES[n - 1]}." for n, sid in enumerate(CANDIDATES[:6])]
    completions = [render_completion(" ".join(cited), shuffled(seed)) for seed in range(BATCH * GROUPS)]
    lists = [shuffled(-1 - group) for group in range(GROUPS) for _ in range(BATCH)]
    targets = [CANDIDATES[n % 10] for n in range(len(completions))]
    token_ids = [range(300)] * len(completions)
    for name in REWARDS:
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
