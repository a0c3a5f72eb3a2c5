"""A logits processor for transformers that lets a model write valid semantic IDs and no others."""

import torch
from torch import Tensor
from transformers import LogitsProcessor

from train.ranking.sid_trie import SidTrie


class SidLogitsProcessor(LogitsProcessor):
    """Inside an ID, only codes that some item has there are left; outside, neither codes nor the end of an ID.

    trie: the valid IDs. begin_id, end_id: tokens around an ID. code_ids_L_C: the token of each code of each level.
    An ID is open when the begin token is among the last L + 1 tokens. Raises ValueError where the text holds a prefix
    that no item has: nothing is ever left unconstrained.
    """

    def __init__(self, trie: SidTrie, begin_id: int, end_id: int, code_ids_L_C: Tensor) -> None:
        if code_ids_L_C.shape != (trie.levels, trie.codebook_size):
            raise ValueError(
                f"tokens of codes have shape {tuple(code_ids_L_C.shape)}; {(trie.levels, trie.codebook_size)} is wanted"
            )
        self.trie = trie
        self.begin_id = begin_id
        self.end_id = end_id
        self.code_ids_L_C = code_ids_L_C
        # The code of each token by level, -1 for any other token: one gather reads a prefix of all beams.
        size = max(int(code_ids_L_C.max()), begin_id, end_id) + 1
        self._code_of_L_V = torch.full((trie.levels, size), -1)
        self._code_of_L_V.scatter_(1, code_ids_L_C, torch.arange(trie.codebook_size).expand(trie.levels, -1))
        self._outside_ids = torch.cat([code_ids_L_C.flatten(), torch.tensor([end_id])])

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """scores (B, V) with what must not follow input_ids (B, T) at minus infinity."""
        levels = self.trie.levels
        # The trie stays in main memory; the few tokens that it looks at come there, and what it allows goes back.
        window_B_W = input_ids[:, -(levels + 1) :].cpu()
        since_begin_B_W = torch.arange(window_B_W.shape[1] - 1, -1, -1)
        # How many tokens follow the last begin token; levels + 1 where none is near enough.
        depth_B = torch.where(window_B_W == self.begin_id, since_begin_B_W, levels + 1).amin(dim=1)
        allowed = torch.full_like(scores, -torch.inf)
        for depth in sorted(set(depth_B.tolist())):
            rows = (depth_B == depth).nonzero()[:, 0]
            if depth > levels:
                outside = rows.to(scores.device)
                allowed[outside] = scores[outside]
                allowed[outside[:, None], self._outside_ids.to(scores.device)] = -torch.inf
                continue
            nodes = self._walk(window_B_W[rows, window_B_W.shape[1] - depth :])
            if depth == levels:
                tokens = torch.full_like(rows, self.end_id)
            else:
                of, codes = self.trie.children(depth, nodes)
                rows, tokens = rows[of], self.code_ids_L_C[depth][codes]
            # One index into the flat scores is twice as fast as two into rows and columns.
            places = (rows * scores.shape[1] + tokens).to(scores.device)
            allowed.view(-1)[places] = scores.reshape(-1)[places]
        return allowed

    def _walk(self, prefix_B_D: Tensor) -> Tensor:
        """The nodes that prefixes of D codes lead to, as token ids."""
        nodes_B = torch.zeros(len(prefix_B_D), dtype=torch.int64)
        last = self._code_of_L_V.shape[1] - 1
        for level in range(prefix_B_D.shape[1]):
            tokens_B = prefix_B_D[:, level]
            codes_B = torch.where(tokens_B <= last, self._code_of_L_V[level][tokens_B.clamp(max=last)], -1)
            nodes_B = self.trie.step(level, nodes_B, codes_B)
        return nodes_B
