import pytest

from curate.evaluation.rankers.protocol import Ranked, checked
from prompts.tasks import RerankTask


def test_a_permutation_stands(task: RerankTask) -> None:
    assert checked(task, Ranked(("e", "c", "d"))) == Ranked(["e", "c", "d"])


@pytest.mark.parametrize(
    "ranked",
    [
        Ranked(()),
        Ranked(("e", "c")),
        Ranked(("e", "c", "d", "d")),
        Ranked(("e", "c", "x")),
        Ranked(("e", "e", "c")),
        Ranked(("e", "c", "d"), valid=False),
    ],
)
def test_what_is_no_permutation_or_not_valid_gives_way_to_the_input_order(task: RerankTask, ranked: Ranked) -> None:
    assert checked(task, ranked) == Ranked(["c", "d", "e"], valid=False)
    # An answer that is of no use has cost as much.
    assert checked(task, ranked._replace(prompt_tokens=5, completion_tokens=2))[3:] == (5, 2)
