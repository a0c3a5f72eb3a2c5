"""Break a formula, one line at a time, and check that a test notices.

    python bench/mutations.py [--only TEXT]

Each mutation replaces a piece of the source in a copy of this checkout, and then runs the tests that should catch it.
The tests must pass in the copy before anything is changed, because otherwise a failure would mean nothing. Exit status
1 if a mutation survives. If a piece is not in its file exactly once, the run ends at once: the source has changed, and
the mutation must follow.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]


class Mutation(NamedTuple):
    """A change of the source that breaks something, and the tests that should then fail.

    file, piece, instead: where and how the source is changed. tests: a file, or one test of it, in tests/.
    """

    name: str
    file: str
    piece: str
    instead: str
    tests: str


MAKING = "curate/candidates/test_making.py::test_longer_sequences_agree_with_the_definition"
LEAKS = "curate/test_leaks.py::test_nothing_that_is_fitted_or_published_depends_on_test_targets"
LEAKS_OF_TREES = "curate/test_leaks.py::test_lambdamart_does_not_depend_on_test_targets"
FITTED = "curate/traces/teachers/fitted"
BEAMS = "train/ranking/test_full_ranking.py::test_as_many_beams_as_ids_are_an_exhaustive_search"
RQ_VAE = "train/sids/test_rq_vae.py"
SFT = "train/sft/test_weighted_loss.py"
REWARDS = "train/dapo/test_rewards.py"
DAPO = "train/dapo/test_training.py"
IDS = "curate/sids/test_assignment.py::test_ids_know_nothing_of_the_purchases_of_held_out_folds"

MUTATIONS = (
    # Folds, and the counts of evidence.
    Mutation(
        "pairs count the fold of a list's own user",
        "store/sql/candidates.sql",
        "and ($without_fold is null or earlier.fold <> $without_fold)",
        "",
        MAKING,
    ),
    Mutation(
        "popularity counts the fold of a list's own user",
        "store/sql/candidates.sql",
        "and ($without_fold is null or fold <> $without_fold)",
        "",
        MAKING,
    ),
    Mutation(
        "valid lists count valid interactions",
        "curate/candidates/making.py",
        'Source("valid", None, ("train",))',
        'Source("valid", None, ("train", "valid"))',
        MAKING,
    ),
    Mutation(
        "the window of co-purchases is wider by one",
        "store/sql/candidates.sql",
        "earlier.position + $window\n",
        "earlier.position + $window + 1\n",
        MAKING,
    ),
    Mutation(
        "weights fade by one step too much",
        "store/sql/candidates.sql",
        "sum(cast($decay ** (distance - 1) as decimal(18, 9))) as raw",
        "sum(cast($decay ** distance as decimal(18, 9))) as raw",
        MAKING,
    ),
    Mutation(
        "histories are longer by one",
        "store/sql/candidates.sql",
        "and sequences.position >= batch_lists.position - $history\n",
        "and sequences.position >= batch_lists.position - $history - 1\n",
        MAKING,
    ),
    Mutation(
        "LambdaMART learns from the fold that it rates",
        "curate/traces/teachers/fitted/boosting.py",
        "train.where(~held_out_N if",
        "train.where(held_out_N | True if",
        f"{FITTED}/test_boosting.py::test_each_model_has_not_seen_the_users_of_its_fold",
    ),
    Mutation(
        "the teacher lambdamart rates training lists by models that have seen their users",
        "curate/traces/teachers/fitted/lambdamart.py",
        "fold = self.folds.get(request.list_id)",
        "fold = None",
        f"{FITTED}/test_lambdamart.py::test_training_lists_are_rated_by_the_model_that_has_not_seen_their_users",
    ),
    # Fits to targets that the model must not know.
    Mutation(
        "the scorecard is fitted to test lists",
        "curate/traces/teachers/fitted/scorecard.py",
        'load_target_lists(store, dataset, *sources, "train"',
        'load_target_lists(store, dataset, *sources, "test"',
        LEAKS,
    ),
    Mutation(
        "LambdaMART is fitted to test lists",
        "curate/traces/teachers/fitted/boosting.py",
        "load_target_lists(store, dataset, sid_version, pre_ranker, split, limit",
        'load_target_lists(store, dataset, sid_version, pre_ranker, split.replace("train", "test"), limit',
        LEAKS_OF_TREES,
    ),
    Mutation(
        "LambdaMART stops by test lists",
        "curate/traces/teachers/fitted/boosting.py",
        "load_target_lists(store, dataset, sid_version, pre_ranker, split, limit",
        'load_target_lists(store, dataset, sid_version, pre_ranker, split.replace("valid", "test"), limit',
        LEAKS_OF_TREES,
    ),
    Mutation(
        "semantic IDs learn from purchases of all splits",
        "store/sql/semantic_ids.sql",
        "and split = 'train' and not",
        "and not",
        LEAKS,
    ),
    Mutation(
        "semantic IDs learn from held-out folds",
        "store/sql/semantic_ids.sql",
        " and not list_contains($held_out_folds, user_fold(user_id))",
        " and $held_out_folds is not null",
        IDS,
    ),
    Mutation(
        "mid-training tells of users in held-out folds",
        "store/sql/snapshots.sql",
        "where dataset = $dataset and not list_contains($held_out_folds, user_fold(user_id))",
        "where dataset = $dataset and $held_out_folds is not null",
        "curate/snapshots/test_midtrain.py",
    ),
    Mutation(
        "test targets can be published",
        "store/sql/snapshots.sql",
        "where dataset = $dataset and split = 'test'",
        "where dataset = $dataset and split = 'none'",
        "curate/snapshots/test_midtrain.py",
    ),
    # Metrics and teachers.
    Mutation(
        "NDCG discounts by log2(2 + rank)",
        "curate/evaluation/metrics.py",
        "np.log2(1.0 + ",
        "np.log2(2.0 + ",
        "curate/evaluation/test_metrics.py",
    ),
    Mutation(
        "recall takes a target that is not ranked for the first",
        "curate/evaluation/metrics.py",
        "((ranks_B >= 1) & (ranks_B <= k))",
        "(ranks_B <= k)",
        "curate/evaluation/test_metrics.py",
    ),
    Mutation(
        "the evidence teacher's noise has the wrong sign",
        "curate/traces/teachers/evidence.py",
        "[score - temperature * math.log(",
        "[score + temperature * math.log(",
        "curate/traces/teachers/test_evidence.py::test_first_places_follow_the_softmax_of_the_scores",
    ),
    Mutation(
        "the scorecard's noise has the wrong sign",
        "curate/traces/teachers/fitted/scorecard.py",
        "scores_K + request.temperature",
        "scores_K - request.temperature",
        f"{FITTED}/test_scorecard.py::test_at_temperature_one_first_places_are_taken_by_their_odds",
    ),
    Mutation(
        "LambdaMART's noise has the wrong sign",
        "curate/traces/teachers/fitted/scorecard.py",
        "scores_K + request.temperature",
        "scores_K - request.temperature",
        f"{FITTED}/test_lambdamart.py::test_first_places_follow_the_softmax_of_the_scores",
    ),
    # Semantic IDs, beams and the trie.
    Mutation(
        "only the first level's sums are averaged",
        "train/sids/rq_vae.py",
        "self.sum_F_C_d.lerp_(taken_F_B_C.mT @ quantization.residuals_F_B_d, 1 - self.decay)",
        "self.sum_F_C_d[:1].lerp_((taken_F_B_C.mT @ quantization.residuals_F_B_d)[:1], 1 - self.decay)",
        RQ_VAE,
    ),
    Mutation(
        "only the first level's counts are averaged",
        "train/sids/rq_vae.py",
        "self.count_F_C.lerp_(taken_F_B_C.sum(dim=1), 1 - self.decay)",
        "self.count_F_C[:1].lerp_(taken_F_B_C.sum(dim=1)[:1], 1 - self.decay)",
        RQ_VAE,
    ),
    Mutation(
        "averages forget at the rate at which they should remember",
        "train/sids/rq_vae.py",
        "self.sum_F_C_d.lerp_(taken_F_B_C.mT @ quantization.residuals_F_B_d, 1 - self.decay)",
        "self.sum_F_C_d.lerp_(taken_F_B_C.mT @ quantization.residuals_F_B_d, self.decay)",
        RQ_VAE,
    ),
    Mutation(
        "beams attend to the codes of the first beam",
        "train/ranking/full_ranking.py",
        ".gather(1, parents_B_K[..., None].expand(-1, -1, sees_B_Q_T.shape[2]))",
        "[:, :1].expand(-1, parents_B_K.shape[1], -1)",
        BEAMS,
    ),
    Mutation(
        "beams go on from the nodes of other beams",
        "train/ranking/full_ranking.py",
        "nodes_B_K.gather(1, parents_B_K)[is_child_B_K]",
        "nodes_B_K.gather(1, parents_B_K.flip(1))[is_child_B_K]",
        BEAMS,
    ),
    Mutation(
        "beams forget the score of their parent",
        "train/ranking/full_ranking.py",
        "scores_B_K[..., None] + log_probs_B_K_C",
        "0 * scores_B_K[..., None] + log_probs_B_K_C",
        BEAMS,
    ),
    Mutation(
        "positions of beams count their siblings",
        "train/ranking/full_ranking.py",
        "(sees_B_Q_T.sum(dim=2) - 1).clamp(min=0)",
        "(sees_B_Q_T.any(dim=1, keepdim=True).sum(dim=2) - 1 + 0 * sees_B_Q_T.sum(dim=2)).clamp(min=0)",
        BEAMS,
    ),
    Mutation(
        "the trie takes a code beyond the codebook",
        "train/ranking/sid_trie.py",
        " | (codes_B < 0) | (codes_B >= self.codebook_size)",
        "",
        "train/ranking/test_sid_trie.py",
    ),
    Mutation(
        "an ID may end before its last level",
        "train/ranking/constrained_decoding.py",
        "if depth == levels:",
        "if depth >= levels - 1:",
        "train/ranking/test_constrained_decoding.py",
    ),
    # SFT.
    Mutation(
        "weights belong to the token before",
        "train/sft/weighted_loss.py",
        "weights_B_T[:, start + 1 :]",
        "weights_B_T[:, start:-1]",
        SFT,
    ),
    Mutation(
        "a token that crosses the border is reasoning",
        "train/sft/weighted_loss.py",
        "loss.answer_weight if end > border else loss.reasoning_weight for _, end in offsets",
        "loss.answer_weight if begin >= border else loss.reasoning_weight for begin, _ in offsets",
        SFT,
    ),
    Mutation(
        "the answer begins where the reasoning first names its key",
        "train/sft/weighted_loss.py",
        "answer.rfind(",
        "answer.find(",
        SFT,
    ),
    # Rewards and DAPO.
    Mutation(
        "demoting the target is rewarded",
        "train/dapo/rewards.py",
        "return (rank_before - rank_after) / candidates",
        "return (rank_after - rank_before) / candidates",
        REWARDS,
    ),
    Mutation(
        "a copied order earns the bonus under the paper's condition",
        "train/dapo/rewards.py",
        "(promotion > 0 or judged.rank_before == 1)",
        "(promotion >= 0 or judged.rank_before == 1)",
        REWARDS,
    ),
    Mutation(
        "a copied order is paid for its ranks",
        "train/dapo/rewards.py",
        "if judged.copied and auc(judged.gains_K) < 1:",
        "if judged.copied and auc(judged.gains_K) < 0:",
        REWARDS,
    ),
    Mutation(
        "length is punished from the limit on only",
        "train/dapo/rewards.py",
        "over = tokens - (max_tokens - cache_tokens)",
        "over = tokens - max_tokens",
        REWARDS,
    ),
    Mutation(
        "groups whose rewards are equal teach",
        "train/dapo/dynamic_sampling.py",
        "not math.isclose(min(scored), max(scored), rel_tol=ROUNDING, abs_tol=ROUNDING)",
        "True",
        "train/dapo/test_dynamic_sampling.py::test_equal_rewards_do_not_differ_though_trls_deviation_does",
    ),
    Mutation(
        "the clip is not higher above",
        "train/dapo/training.py",
        '"epsilon_high": settings.epsilon_high',
        '"epsilon_high": settings.epsilon',
        DAPO,
    ),
    Mutation("the loss is GRPO's", "train/dapo/settings.py", '"dapo": Loss("dapo"', '"dapo": Loss("grpo"', DAPO),
    Mutation("there is a KL term", "train/dapo/training.py", '"beta": 0.0', '"beta": 0.04', DAPO),
    Mutation(
        "truncated answers are learned",
        "train/dapo/training.py",
        '"mask_truncated_completions": True',
        '"mask_truncated_completions": False',
        DAPO,
    ),
    Mutation(
        "long answers are punished in full whatever their weight",
        "train/dapo/training.py",
        "[1.0, 0.0, settings.overlong_weight]",
        "[1.0, 0.0, 1.0]",
        DAPO,
    ),
)


def copy_checkout(target: Path) -> None:
    """Copy the files that git knows or would add."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, target / name)


def run_tests(copy: Path, tests: list[str]) -> tuple[bool, str]:
    """Run tests. Returns whether all of them pass, and pytest's output. Ends the run if they cannot be run at all."""
    places = [f"tests/{place}" for place in tests]
    process = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-n", "0", "-p", "no:cacheprovider", "-m", "not slow", *places],
        cwd=copy,
        # The copy must come before the checkout, to which the environment's own path leads.
        env=os.environ | {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if process.returncode not in (0, 1):
        sys.exit(f"{' '.join(places)} cannot be run:\n{process.stdout[-2000:]}{process.stderr[-2000:]}")
    return process.returncode == 0, process.stdout


def check_pieces(copy: Path, mutations: list[Mutation]) -> None:
    """End the run if a piece is not in its file exactly once."""
    for mutation in mutations:
        count = (copy / mutation.file).read_text("utf-8").count(mutation.piece)
        if count != 1:
            sys.exit(f"{mutation.name}: {mutation.piece!r} is {count} times in {mutation.file}; it must be there once")


def main() -> None:
    """Try every mutation and print whether it was caught."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="", help="mutations whose name, file or tests hold this text")
    only = parser.parse_args().only
    mutations = [each for each in MUTATIONS if any(only in part for part in (each.name, each.file, each.tests))]
    if not mutations:
        sys.exit(f"no mutation has {only!r} in its name, file or tests")
    survivors = []
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary) / "checkout"
        copy_checkout(copy)
        check_pieces(copy, mutations)
        passed, output = run_tests(copy, sorted({mutation.tests for mutation in mutations}))
        if not passed:
            sys.exit(f"tests fail before anything is changed:\n{output[-4000:]}")
        for mutation in mutations:
            started = time.perf_counter()
            file = copy / mutation.file
            source = file.read_text("utf-8")
            file.write_text(source.replace(mutation.piece, mutation.instead), "utf-8")
            survived, _ = run_tests(copy, [mutation.tests])
            file.write_text(source, "utf-8")
            survivors += [mutation.name] if survived else []
            print(
                f"{'SURVIVED' if survived else 'caught  '} {mutation.name} ({time.perf_counter() - started:.0f} s)",
                flush=True,
            )
    print(f"{len(mutations) - len(survivors)} of {len(mutations)} mutations caught")
    sys.exit(bool(survivors))


if __name__ == "__main__":
    main()
