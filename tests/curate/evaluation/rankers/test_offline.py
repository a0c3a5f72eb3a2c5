from curate.evaluation.rankers.offline import EvidenceRanker, PreRanker
from curate.evaluation.rankers.protocol import Ranked
from prompts.tasks import RerankTask


def test_the_pre_ranker_leaves_the_order_as_it_is(task: RerankTask) -> None:
    assert list(PreRanker("cooccurrence.v1").rank([task, task])) == [Ranked(["c", "d", "e"])] * 2


def test_the_evidence_ranker_puts_the_most_evidence_first(task: RerankTask) -> None:
    assert list(EvidenceRanker().rank([task])) == [Ranked(["e", "c", "d"])]
