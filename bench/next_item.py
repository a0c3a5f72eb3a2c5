"""A small next-item model over semantic IDs. All tokenizers get the same budget, so that IDs can be compared in use.

A causal transformer over items, each the sum of its codes' embeddings, writes the next item's ID level by level. The
ranking is a beam search over the trie of valid IDs, without the items of the history. The model is an instrument of the
benchmarks, not a recommender of gr2.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from train.ranking.sid_trie import SidTrie

LENGTH = 20
BEAMS = 40
KEPT = 10


@dataclass(frozen=True)
class Budget:
    """The training budget of every tokenizer."""

    epochs: int = 12
    width: int = 96
    layers: int = 2
    batch: int = 256
    learning_rate: float = 2e-3
    dropout: float = 0.2


class NextItem(nn.Module):
    """Predicts the next item's codes from a history of codes."""

    def __init__(self, levels: int, codes: int, budget: Budget) -> None:
        super().__init__()
        width = budget.width
        self.taken = nn.ModuleList(nn.Embedding(codes, width) for _ in range(levels))
        self.place = nn.Embedding(LENGTH, width)
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, budget.dropout, batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, budget.layers, enable_nested_tensor=False)
        self.written = nn.ModuleList(nn.Embedding(codes, width) for _ in range(levels - 1))
        self.heads = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width),
                nn.Linear(width, width),
                nn.GELU(),
                nn.Dropout(budget.dropout),
                nn.Linear(width, codes),
            )
            for _ in range(levels)
        )

    def read(self, codes_B_T_L: torch.Tensor) -> torch.Tensor:
        """Return states (B, T, width). Each state depends on its item and the items before."""
        summed = sum(table(codes_B_T_L[..., level]) for level, table in enumerate(self.taken))
        length = codes_B_T_L.shape[1]
        mask = torch.triu(torch.full((length, length), -torch.inf), 1)
        return self.body(summed + self.place.weight[:length], mask=mask, is_causal=True)

    def logits(self, states: torch.Tensor, codes: torch.Tensor, level: int) -> torch.Tensor:
        """Return the logits of one level after the codes of the levels before, (..., level)."""
        written = sum(
            (table(codes[..., before]) for before, table in enumerate(self.written[:level])), torch.zeros_like(states)
        )
        return self.heads[level](states + written)


def fit(histories: list[np.ndarray], codes_N_L: np.ndarray, codebook_size: int, seed: int, budget: Budget) -> NextItem:
    """Train on histories of item rows, oldest first."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    codes = torch.from_numpy(codes_N_L.astype(np.int64))
    model = NextItem(codes.shape[1], codebook_size, budget)
    optimizer = torch.optim.AdamW(model.parameters(), lr=budget.learning_rate, weight_decay=1e-2)
    long_enough = [history[-LENGTH - 1 :] for history in histories if len(history) > 1]
    steps = budget.epochs * -(-len(long_enough) // budget.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, budget.learning_rate, total_steps=steps)
    for _ in range(budget.epochs):
        order = sorted(rng.permutation(len(long_enough)), key=lambda index: len(long_enough[index]))
        batches = [order[start : start + budget.batch] for start in range(0, len(order), budget.batch)]
        for batch in (batches[index] for index in rng.permutation(len(batches))):
            items, valid = pad([long_enough[index] for index in batch])
            states = model.read(codes[items[:, :-1]])[valid[:, :-1] & valid[:, 1:]]
            targets = codes[items[:, 1:]][valid[:, :-1] & valid[:, 1:]]
            loss = sum(
                functional.cross_entropy(model.logits(states, targets, level), targets[:, level])
                for level in range(codes.shape[1])
            )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    return model.eval()


def pad(histories: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return histories (B, T) and which places are not padding.

    Padding comes last, so that causal attention never sees it.
    """
    longest = max(len(history) for history in histories)
    items = torch.zeros(len(histories), longest, dtype=torch.int64)
    valid = torch.zeros(len(histories), longest, dtype=torch.bool)
    for row, history in enumerate(histories):
        items[row, : len(history)] = torch.from_numpy(history)
        valid[row, : len(history)] = True
    return items, valid


@torch.no_grad()
def rank(
    model: NextItem, histories: list[np.ndarray], targets: np.ndarray, codes_N_L: np.ndarray, codebook_size: int
) -> np.ndarray:
    """Return the target's rank (from 1, 0 beyond KEPT) among all items.

    Items that share an ID share the places they take.
    """
    trie = SidTrie.build(codes_N_L, codebook_size)
    codes = torch.from_numpy(codes_N_L.astype(np.int64))
    node_N = torch.zeros(len(codes), dtype=torch.int64)
    for level in range(codes.shape[1]):
        node_N = trie.step(level, node_N, codes[:, level])
    sharing = torch.bincount(node_N)
    ranks = np.zeros(len(histories), np.int64)
    order = sorted(range(len(histories)), key=lambda index: len(histories[index]))
    for start in range(0, len(order), 256):
        rows = order[start : start + 256]
        kept = [histories[row][-LENGTH:] for row in rows]
        items, valid = pad(kept)
        last_states = model.read(codes[items])[torch.arange(len(rows)), valid.sum(dim=1) - 1]
        nodes, beams = beam_search(model, last_states, trie)
        seen = torch.zeros(len(rows), len(sharing), dtype=torch.bool)
        for index, history in enumerate(kept):
            seen[index, node_N[torch.from_numpy(history)]] = True
        # An item of the history is not proposed, unless another item shares its ID.
        out = seen.gather(1, nodes) & (sharing[nodes] == 1) | beams.isinf()
        for index, row in enumerate(rows):
            proposed = nodes[index][~out[index]]
            hit = (proposed == node_N[targets[row]]).nonzero()
            if len(hit):
                place = int(hit[0, 0])
                # The target gets the middle place among the items that share its ID.
                target_rank = int(sharing[proposed[:place]].sum()) + (int(sharing[proposed[place]]) + 1) // 2
                ranks[row] = target_rank if target_rank <= KEPT else 0
    return ranks


def beam_search(model: NextItem, state_B: torch.Tensor, trie: SidTrie) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the best IDs, as nodes of the last level (B, BEAMS), best first, and their log-probabilities."""
    users = len(state_B)
    nodes = torch.zeros(users, 1, dtype=torch.int64)
    scores = torch.zeros(users, 1)
    prefixes = torch.zeros(users, 1, 0, dtype=torch.int64)
    for level in range(trie.levels):
        width = nodes.shape[1]
        states = state_B[:, None].expand(-1, width, -1)
        following = model.logits(states, prefixes, level).log_softmax(-1) + scores[..., None]
        allowed = torch.full_like(following, -torch.inf).reshape(users * width, -1)
        of, codes = trie.children(level, nodes.flatten())
        allowed[of, codes] = following.reshape(users * width, -1)[of, codes]
        flat = allowed.reshape(users, -1)
        scores, chosen = flat.topk(min(BEAMS, flat.shape[1]), dim=1)
        parent, code = chosen // trie.codebook_size, chosen % trie.codebook_size
        prefixes = torch.cat([prefixes.gather(1, parent[..., None].expand(-1, -1, level)), code[..., None]], dim=2)
        alive = ~scores.isinf()
        next_nodes = torch.zeros_like(chosen)
        next_nodes[alive] = trie.step(level, nodes.gather(1, parent)[alive], code[alive])
        nodes = next_nodes
    return nodes, scores
