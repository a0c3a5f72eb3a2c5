"""All items of a catalogue, ranked for a user by a language model: constrained beam search over their semantic IDs.

The model reads what a user bought, as in the mid-training task next_item, and what it would write next is searched for
among valid IDs alone. An ID's score is the model's own log-probability of its codes, one after the other and over the
whole vocabulary, after the begin token: what no item has is left out, and nothing is renormalised, so that scores also
say how much the model believes in IDs that there are. As many beams as there are IDs make the search exhaustive.

Beams stand side by side behind their user's prompt, and a mask shows each its own codes alone: the prompt is kept once,
not once a beam, and nothing is copied from step to step, which makes a small model five times as fast.

The same beams are an evaluation, in which no item is left out, and candidates for re-ranking: what
`gr2 candidates` reads.
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
from store.temporary import temporary_folder
from train.ranking.settings import FullRankingSettings
from train.ranking.sid_trie import SidTrie
from train.students.vocabulary import Vocabulary, find_vocabulary

KS = (5, 10)
NO_LIMIT = 2**62

OnProgress = Callable[[str], None]


DEFAULTS = FullRankingSettings()


class RankedIds(NamedTuple):
    """The best IDs of N users, best first. nodes_N_K: which of the trie's IDs, in ascending order of their codes.

    log_probs_N_K: minus infinity, beside a node that means nothing, where there are fewer IDs than beams.
    """

    nodes_N_K: NDArray[np.int64]
    log_probs_N_K: NDArray[np.float32]


class Proposals(NamedTuple):
    """targets: user, user_id, position, target_item_id; `user` numbers them, since one user may have several.

    items: user, item_id, score, best first for each; none of the user's history.
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
    on_progress: OnProgress = lambda _: None,
) -> RankedIds:
    """The IDs that a model finds likeliest after each history, a text such as `sequence_text` writes.

    beams: how many prefixes are kept at each level, and IDs returned. batch_size: users at a time, of about the same
    length.

    Raises InputError on a history longer than what the model reads, and on a model that cannot read beams side by side.
    """
    most_tokens = _most_tokens(model) - (trie.levels - 1)
    model.eval()
    nodes_N_K = np.zeros((len(histories), beams), np.int64)
    log_probs_N_K = np.full((len(histories), beams), -np.inf, np.float32)
    order = sorted(range(len(histories)), key=lambda place: len(histories[place]))
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        prompts = [histories[place] + BEGIN for place in places]
        read = tokenizer(prompts, padding=True, padding_side="left", return_tensors="pt", verbose=False)
        if (tokens := read["input_ids"].shape[1]) > most_tokens:
            raise InputError(f"a history has {tokens:,} tokens; the model reads {most_tokens:,}: shorten it")
        nodes_B_K, scores_B_K = _search(model, vocabulary.code_ids_L_C, trie, read, beams)
        nodes_N_K[places, : nodes_B_K.shape[1]] = nodes_B_K.numpy()
        log_probs_N_K[places, : nodes_B_K.shape[1]] = scores_B_K.numpy()
        on_progress(f"{start + len(places):,} of {len(order):,} users")
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
    """What a model proposes to the users of a split as their next item, after everything that they bought before it.

    Items that share an ID share its score, and come in the order of their names.

    Raises InputError where the store lacks what is needed, or the tokenizer has no such semantic IDs.
    """
    with store.reading() as session:
        find_dataset(session, dataset)
        version = choose_sids(session, dataset, settings.sid_version)
        [(sid_settings, *_)] = session.rows("sid_version", dataset=dataset, sid_version=version)
        codes = session.frame("codes_of", dataset=dataset, sid_version=version)
        limit = NO_LIMIT if settings.limit is None else settings.limit
        targets = session.frame("next_item_targets", dataset=dataset, split=split, limit=limit).with_row_index("user")
    if targets.height == 0:
        raise InputError(f"no user of {dataset!r} has a {split} interaction with something before it")
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
        on_progress=lambda done: on_progress(f"{split}: {done}"),
    )
    # The trie numbers IDs in ascending order, as np.unique does.
    node_I = np.unique(codes_I_L, axis=0, return_inverse=True)[1]
    items = (
        pl.DataFrame(
            {
                "user": np.repeat(targets["user"].to_numpy(), settings.beams),
                "node": ranked.nodes_N_K.ravel(),
                "score": ranked.log_probs_N_K.ravel(),
            }
        )
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
    """Recall and NDCG at 5 and 10 among all items but those of the history, with bootstrap intervals over targets.

    A target that no beam found is a miss. Raises InputError as `propose_items` says.
    """
    proposed = propose_items(store, dataset, model, tokenizer, settings, split=split, on_progress=on_progress)
    found = (
        proposed.items.with_columns(rank=pl.int_range(1, pl.len() + 1).over("user"))
        .join(proposed.targets, left_on=["user", "item_id"], right_on=["user", "target_item_id"])
        .select("user", "rank")
    )
    ranks_N = proposed.targets.join(found, on="user", how="left")["rank"].fill_null(0).to_numpy()
    # The mean reciprocal rank would depend on how many beams there were.
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
    """What is proposed, as Parquet that `gr2 candidates` reads: user_id, item_id, position, score.

    position: which of the user's interactions is the target. Training positions are left out unless `splits` names
    them: mid-training read the very purchases that they are about, so that scores there leak the target, and lists made
    of them are far better than any new user's. gr2's own pre-ranker is cross-fitted; one language model for all users
    cannot be.

    Raises InputError as `propose_items` says.
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
    """Nodes of the last level (B, K), best first, and their log-probabilities; K is `beams` or less."""
    ids_B_Q, mask_B_T = read["input_ids"], read["attention_mask"].bool()
    users, width, cache = len(ids_B_Q), 1, None
    nodes_B_K = torch.zeros(users, width, dtype=torch.int64)
    scores_B_K = torch.zeros(users, width)
    # Which of the T tokens so far each of the Q that are read now may see: at first what is before it, then of each
    # beam what its parent saw, and itself.
    sees_B_Q_T = mask_B_T[:, None] & torch.ones(mask_B_T.shape[1], mask_B_T.shape[1], dtype=torch.bool).tril()
    for level, code_ids_C in enumerate(code_ids_L_C):
        out = model(
            input_ids=ids_B_Q.to(model.device),
            attention_mask=_bias(sees_B_Q_T, model),
            position_ids=(sees_B_Q_T.sum(dim=2) - 1).clamp(min=0).to(model.device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=width,
        )
        cache = out.past_key_values
        logits_B_K_V = out.logits.float()
        log_probs_B_K_C = (logits_B_K_V[..., code_ids_C] - logits_B_K_V.logsumexp(dim=2, keepdim=True)).cpu()
        nodes_B_K, scores_B_K, parents_B_K, codes_B_K = _extend(
            trie, level, nodes_B_K, scores_B_K[..., None] + log_probs_B_K_C, beams
        )
        sees_B_K_T = sees_B_Q_T[:, -width:].gather(1, parents_B_K[..., None].expand(-1, -1, sees_B_Q_T.shape[2]))
        width = nodes_B_K.shape[1]
        sees_B_Q_T = torch.cat([sees_B_K_T, torch.eye(width, dtype=torch.bool).expand(users, -1, -1)], dim=2)
        ids_B_Q = code_ids_C[codes_B_K]
    return nodes_B_K, scores_B_K


def _extend(
    trie: SidTrie, level: int, nodes_B_K: Tensor, scores_B_K_C: Tensor, beams: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The best ways on from K nodes of each of B users: nodes, scores, which of the K each is from, and by which code.

    scores_B_K_C: of each code after each node, whether there is a way or not. Where there are too few ways, scores of
    minus infinity fill up.
    """
    rows, codes = trie.children(level, nodes_B_K.flatten())
    scores_R_C = scores_B_K_C.flatten(0, 1)
    allowed_R_C = torch.full_like(scores_R_C, -torch.inf)
    allowed_R_C[rows, codes] = scores_R_C[rows, codes]
    allowed_B_W = allowed_R_C.reshape(len(nodes_B_K), -1)
    best_B_K, places_B_K = allowed_B_W.topk(min(beams, allowed_B_W.shape[1], len(trie.codes[level])), dim=1)
    parents_B_K, codes_B_K = places_B_K // trie.codebook_size, places_B_K % trie.codebook_size
    is_way_B_K = best_B_K > -torch.inf
    next_B_K = torch.zeros_like(places_B_K)
    next_B_K[is_way_B_K] = trie.step(level, nodes_B_K.gather(1, parents_B_K)[is_way_B_K], codes_B_K[is_way_B_K])
    return next_B_K, best_B_K, parents_B_K, codes_B_K


def _bias(sees_B_Q_T: Tensor, model: Any) -> Tensor:
    """What attention adds, the same for all heads: 0 where a token is seen, the lowest number where it is not."""
    bias = torch.zeros(sees_B_Q_T.shape, dtype=model.dtype)
    return bias.masked_fill_(~sees_B_Q_T, torch.finfo(model.dtype).min)[:, None].to(model.device)


def _most_tokens(model: Any) -> int:
    """Up to which a mask is all that decides what a token sees. Raises InputError where that is never so."""
    kinds = set(getattr(model.config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if kinds or model.config._attn_implementation not in ("sdpa", "eager"):
        raise InputError(
            f"{type(model).__name__} with {', '.join(sorted(kinds)) or model.config._attn_implementation} cannot read "
            "beams side by side; load a model of plain attention, with sdpa"
        )
    limits = (getattr(model.config, name, None) for name in ("max_position_embeddings", "sliding_window"))
    return min((limit for limit in limits if limit), default=2**31)
