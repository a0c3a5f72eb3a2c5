"""Full ranking: a language model ranks all items of a catalogue by constrained beam search over their semantic IDs.

The model reads a user's history, as in the mid-training task next_item, and the search considers valid IDs only. The
score of an ID is the sum of the model's log-probabilities of its codes after the begin token, each over the whole
vocabulary. Probability that falls on invalid IDs is not redistributed, so scores also tell how much the model believes
in existing IDs. With as many beams as IDs the search is exhaustive.

All beams of a user follow the same prompt in one row, and a mask shows each beam only its own codes. The prompt is
cached once, not once per beam, and no cache is copied between steps, which makes a small model five times as fast.

The beams serve two purposes: an evaluation over all items, and candidates for re-ranking, which `gr2 candidates` reads.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from curate.datasets.catalogue import find_dataset
from curate.datasets.sources import choose_sids
from curate.evaluation.metrics import Metric, score_ranks
from curate.snapshots.midtrain import sequence_text
from prompts.semantic_ids import BEGIN, render_sid
from prompts.tasks import ShownItem
from store import InputError, Store
from store.progress import Counted
from store.temporary import temporary_folder
from train.ranking.settings import FullRankingSettings
from train.ranking.sid_trie import SidTrie
from train.students.vocabulary import Vocabulary, find_vocabulary

KS = (5, 10)
# The LIMIT of a query needs a number.
NO_LIMIT = 2**62

OnProgress = Callable[[str], None]


DEFAULTS = FullRankingSettings()


class RankedIds(NamedTuple):
    """The K best IDs of each of N users, best first.

    nodes_N_K: the number of each ID among the trie's IDs, which are sorted by their codes. log_probs_N_K: the score of
    each ID. It is minus infinity where there are fewer IDs than beams, and the node there has no meaning.
    """

    nodes_N_K: NDArray[np.int64]
    log_probs_N_K: NDArray[np.float32]


class Proposals(NamedTuple):
    """Proposed items for each target interaction.

    targets: columns user, user_id, position, target_item_id. `user` numbers the rows, because a user may have several
    targets. items: columns user, item_id, score, best first for each user, without items of the user's history.
    """

    targets: pl.DataFrame
    items: pl.DataFrame


@torch.inference_mode()
def rank_items(
    model: Any,
    tokenizer: Any,
    vocabulary: Vocabulary,
    trie: SidTrie,
    histories: Sequence[str],
    *,
    beams: int = 20,
    batch_size: int = 32,
    on_progress: Callable[[Counted], None] = lambda _: None,
) -> RankedIds:
    """Return the IDs that a model finds most likely after each history.

    histories: texts as `sequence_text` writes them. beams: the number of prefixes kept at each level and of IDs
    returned. batch_size: users per batch; a batch holds histories of similar length.

    Raises InputError if a history is longer than the model's context, or if the model's attention is not supported.
    """
    # The last code is only predicted, never read, so the beams add levels - 1 tokens to the prompt.
    most_tokens = _most_tokens(model) - (trie.levels - 1)
    model.eval()
    nodes_N_K = np.zeros((len(histories), beams), np.int64)
    log_probs_N_K = np.full((len(histories), beams), -np.inf, np.float32)
    order = sorted(range(len(histories)), key=lambda place: len(histories[place]))
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        prompts = [histories[place] + BEGIN for place in places]
        # The padding is on the left, so that the last token of every prompt is in the last column.
        inputs = tokenizer(prompts, padding=True, padding_side="left", return_tensors="pt", verbose=False)
        if (tokens := inputs["input_ids"].shape[1]) > most_tokens:
            raise InputError(
                f"a history has {tokens:,} tokens, but the model reads at most {most_tokens:,}; shorten it"
            )
        nodes_B_K, scores_B_K = _search(model, vocabulary.code_ids_L_C, trie, inputs, beams)
        # If there are fewer IDs than beams, the filler of minus infinity stays in the last columns.
        nodes_N_K[places, : nodes_B_K.shape[1]] = nodes_B_K.numpy()
        log_probs_N_K[places, : nodes_B_K.shape[1]] = scores_B_K.numpy()
        count = start + len(places)
        on_progress(Counted(f"{count:,} of {len(order):,} users", count, len(order)))
    return RankedIds(nodes_N_K, log_probs_N_K)


def propose_items(
    store: Store,
    dataset: str,
    model: Any,
    tokenizer: Any,
    settings: FullRankingSettings,
    *,
    split: str,
    on_progress: OnProgress = lambda _: None,
) -> Proposals:
    """Propose the next item for each target of a split, given the user's whole history before the target.

    Items that share an ID share its score and are sorted by item_id.

    Raises InputError if the store has no such dataset, semantic IDs or targets, or if the tokenizer lacks their tokens.
    """
    with store.reading() as session:
        find_dataset(session, dataset)
        version = choose_sids(session, dataset, settings.sid_version)
        [(sid_settings, *_)] = session.rows("sid_version", dataset=dataset, sid_version=version)
        codes = session.frame("codes_of", dataset=dataset, sid_version=version)
        limit = NO_LIMIT if settings.limit is None else settings.limit
        targets = session.frame("next_item_targets", dataset=dataset, split=split, limit=limit).with_row_index("user")
    if targets.height == 0:
        raise InputError(
            f"no user of {dataset!r} has a {split} interaction after another one, so there is nothing to rank; "
            "choose another split"
        )
    # _I: items, _L: levels of their IDs.
    codes_I_L = np.array(codes["codes"].to_list(), np.int64)
    codebook_size = int(orjson.loads(sid_settings)["codebook_size"])
    shown = {item_id: ShownItem(item_id, render_sid(item_codes)) for item_id, item_codes in codes.rows()}
    ranked = rank_items(
        model,
        tokenizer,
        find_vocabulary(tokenizer, codes_I_L.shape[1], codebook_size),
        SidTrie.build(codes_I_L, codebook_size),
        [sequence_text([shown[item] for item in history]) for history in targets["history"]],
        beams=settings.beams,
        batch_size=settings.batch_size,
        on_progress=lambda message: on_progress(Counted(f"{split}: {message}", message.done, message.total)),
    )
    # np.unique sorts IDs in the same order as the trie, so its inverse maps each item to a node.
    node_I = np.unique(codes_I_L, axis=0, return_inverse=True)[1]
    items = (
        pl.DataFrame(
            {
                "user": np.repeat(targets["user"].to_numpy(), settings.beams),
                "node": ranked.nodes_N_K.ravel(),
                "score": ranked.log_probs_N_K.ravel(),
            }
        )
        # Minus infinity marks filler, whose node has no meaning.
        .filter(pl.col("score").is_finite())
        .join(pl.DataFrame({"item_id": codes["item_id"], "node": node_I}), on="node")
        .join(targets.select("user", item_id="history").explode("item_id"), on=["user", "item_id"], how="anti")
        .sort("user", "score", "item_id", descending=[False, True, False])
        .select("user", "item_id", "score")
    )
    return Proposals(targets.drop("history"), items)


def evaluate_full_ranking(
    store: Store,
    dataset: str,
    model: Any,
    tokenizer: Any,
    settings: FullRankingSettings = DEFAULTS,
    *,
    split: str = "test",
    on_progress: OnProgress = lambda _: None,
) -> list[Metric]:
    """Measure recall and NDCG at 5 and 10 over all items outside the history, with bootstrap intervals over targets.

    A target that is in no beam counts as a miss. Raises InputError under the same conditions as `propose_items`.
    """
    proposed = propose_items(store, dataset, model, tokenizer, settings, split=split, on_progress=on_progress)
    target_ranks = (
        proposed.items.with_columns(rank=pl.int_range(1, pl.len() + 1).over("user"))
        .join(proposed.targets, left_on=["user", "item_id"], right_on=["user", "target_item_id"])
        .select("user", "rank")
    )
    # score_ranks reads rank 0 as a miss. A left join keeps the targets that no beam proposed.
    ranks_N = proposed.targets.join(target_ranks, on="user", how="left")["rank"].fill_null(0).to_numpy()
    # The mean reciprocal rank would depend on the number of beams.
    return [metric for metric in score_ranks(ranks_N, KS) if metric.name != "mrr"]


def write_scores(
    store: Store,
    dataset: str,
    model: Any,
    tokenizer: Any,
    settings: FullRankingSettings = DEFAULTS,
    *,
    path: Path,
    splits: Sequence[str] = ("valid", "test"),
    on_progress: OnProgress = lambda _: None,
) -> Path:
    """Write the proposed items as a Parquet file for `gr2 candidates`: user_id, item_id, position, score.

    position: the index of the target among the user's interactions. splits: the default omits training positions.
    Mid-training has read those very interactions, so scores at training positions leak the target, and candidate lists
    from them are far better than a new user's would be. gr2's own pre-ranker avoids this by cross-fitting, which a
    single language model for all users cannot do.

    Raises InputError under the same conditions as `propose_items`.
    """
    scores = []
    for split in splits:
        targets, items = propose_items(store, dataset, model, tokenizer, settings, split=split, on_progress=on_progress)
        columns = ("user_id", "item_id", "position", "score")
        scores.append(items.join(targets, on="user", maintain_order="left").select(columns))
    with temporary_folder(path.absolute().parent) as temporary:
        pl.concat(scores).write_parquet(temporary / path.name)
        (temporary / path.name).replace(path)
    return path


def _search(model: Any, code_ids_L_C: Tensor, trie: SidTrie, read: Any, beams: int) -> tuple[Tensor, Tensor]:
    """Search for nodes of the last level (B, K), best first, with their log-probabilities. K is at most `beams`.

    read: the tokenizer's input_ids and attention_mask of B prompts, padded on the left.
    """
    # _Q: tokens read in this step (first the prompt, then one per beam). _T: all tokens so far. _K: beams.
    ids_B_Q, mask_B_T = read["input_ids"], read["attention_mask"].bool()
    users, width, cache = len(ids_B_Q), 1, None
    nodes_B_K = torch.zeros(users, width, dtype=torch.int64)
    scores_B_K = torch.zeros(users, width)
    # Which of the T tokens each of the Q tokens may attend to. A token of the prompt attends to itself and all
    # tokens before it. A beam attends to all tokens that its parent attends to, and to itself.
    sees_B_Q_T = mask_B_T[:, None] & torch.ones(mask_B_T.shape[1], mask_B_T.shape[1], dtype=torch.bool).tril()
    for level, code_ids_C in enumerate(code_ids_L_C):
        out = model(
            input_ids=ids_B_Q.to(model.device),
            attention_mask=_bias(sees_B_Q_T, model),
            # A token's column is not its position, because padding precedes the prompt, and sibling beams are adjacent.
            position_ids=(sees_B_Q_T.sum(dim=2) - 1).clamp(min=0).to(model.device),
            past_key_values=cache,
            use_cache=True,
            # In the prompt only the last token predicts a code. Afterwards every beam does.
            logits_to_keep=width,
        )
        cache = out.past_key_values
        # float32 is needed, because sums of log-probabilities in bfloat16 would create ties.
        logits_B_K_V = out.logits.float()
        # The scores are normalised over the whole vocabulary V, not over the C codes of the level (see the module
        # docstring).
        log_probs_B_K_C = (logits_B_K_V[..., code_ids_C] - logits_B_K_V.logsumexp(dim=2, keepdim=True)).cpu()
        nodes_B_K, scores_B_K, parents_B_K, codes_B_K = _extend(
            trie, level, nodes_B_K, scores_B_K[..., None] + log_probs_B_K_C, beams
        )
        # A new beam inherits its parent's row of the mask. Cached keys never move, so nothing else is reordered.
        sees_B_K_T = sees_B_Q_T[:, -width:].gather(1, parents_B_K[..., None].expand(-1, -1, sees_B_Q_T.shape[2]))
        width = nodes_B_K.shape[1]
        sees_B_Q_T = torch.cat([sees_B_K_T, torch.eye(width, dtype=torch.bool).expand(users, -1, -1)], dim=2)
        ids_B_Q = code_ids_C[codes_B_K]
    return nodes_B_K, scores_B_K


def _extend(
    trie: SidTrie, level: int, nodes_B_K: Tensor, scores_B_K_C: Tensor, beams: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the best children of the K nodes of each of B users: nodes, scores, parents (indices of the K), and codes.

    scores_B_K_C: the score of every code after every node, even of codes that lead nowhere. If there are fewer children
    than beams, entries with a score of minus infinity fill the rest.
    """
    # _R: users times nodes, _W: nodes times codes of one user.
    rows, codes = trie.children(level, nodes_B_K.flatten())
    scores_R_C = scores_B_K_C.flatten(0, 1)
    allowed_R_C = torch.full_like(scores_R_C, -torch.inf)
    allowed_R_C[rows, codes] = scores_R_C[rows, codes]
    # All children of a user compete with each other, even if their parents differ.
    allowed_B_W = allowed_R_C.reshape(len(nodes_B_K), -1)
    # More beams than the trie has nodes at the next level could only hold filler.
    best_B_K, places_B_K = allowed_B_W.topk(min(beams, allowed_B_W.shape[1], len(trie.codes[level])), dim=1)
    parents_B_K, codes_B_K = places_B_K // trie.codebook_size, places_B_K % trie.codebook_size
    # trie.step() raises on a code that leads nowhere, so filler keeps node 0, whose children then also score -inf.
    is_child_B_K = best_B_K > -torch.inf
    next_B_K = torch.zeros_like(places_B_K)
    next_B_K[is_child_B_K] = trie.step(level, nodes_B_K.gather(1, parents_B_K)[is_child_B_K], codes_B_K[is_child_B_K])
    return next_B_K, best_B_K, parents_B_K, codes_B_K


def _bias(sees_B_Q_T: Tensor, model: Any) -> Tensor:
    """Return the additive attention mask (B, 1, Q, T) for all heads: 0 for allowed attention, else the lowest float."""
    # The value is not -inf, because a padding token attends to nothing, and a softmax over -inf alone is NaN.
    bias = torch.zeros(sees_B_Q_T.shape, dtype=model.dtype)
    return bias.masked_fill_(~sees_B_Q_T, torch.finfo(model.dtype).min)[:, None].to(model.device)


def _most_tokens(model: Any) -> int:
    """The number of tokens up to which the mask alone decides what a token attends to.

    Raises InputError if the model's attention does not follow a four-dimensional mask.
    """
    kinds = set(getattr(model.config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if kinds or model.config._attn_implementation not in ("sdpa", "eager"):
        raise InputError(
            f"{type(model).__name__} with {', '.join(sorted(kinds)) or model.config._attn_implementation} does not "
            "support the mask of this beam search; load a model with full or sliding attention, with sdpa or eager"
        )
    # Beyond its window, sliding attention would hide tokens that the mask shows.
    limits = (getattr(model.config, name, None) for name in ("max_position_embeddings", "sliding_window"))
    return min((limit for limit in limits if limit), default=2**31)
