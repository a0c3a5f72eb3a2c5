"""A logits processor for transformers that restricts generation to valid semantic IDs."""

import torch
from torch import Tensor
from transformers import LogitsProcessor

from train.ranking.sid_trie import SidTrie


class SidLogitsProcessor(LogitsProcessor):
    """Inside an ID, allows only codes that continue the ID of some item. Outside, allows no code and no end token.

    trie: the valid IDs. begin_id, end_id: the tokens around an ID. code_ids_L_C: the token of each of the C codes of
    each of the L levels. An ID is open if the begin token is among the last L + 1 tokens.

    Raises ValueError if code_ids_L_C does not fit the trie. A call raises ValueError if the text contains a prefix that
    no item has, because the processor would otherwise have to leave that row unconstrained.
    """

    def __init__(self, trie: SidTrie, begin_id: int, end_id: int, code_ids_L_C: Tensor) -> None:
        if code_ids_L_C.shape != (trie.levels, trie.codebook_size):
            raise ValueError(
                f"code_ids_L_C has shape {tuple(code_ids_L_C.shape)}; it must be {(trie.levels, trie.codebook_size)}"
            )
        self.trie = trie
        self.begin_id = begin_id
        self.end_id = end_id
        self.code_ids_L_C = code_ids_L_C
        # This maps tokens to codes at each level (V: vocabulary), with -1 for other tokens, so that one gather reads
        # all beams.
        size = max(int(code_ids_L_C.max()), begin_id, end_id) + 1
        self._code_of_L_V = torch.full((trie.levels, size), -1)
        self._code_of_L_V.scatter_(1, code_ids_L_C, torch.arange(trie.codebook_size).expand(trie.levels, -1))
        self._outside_ids = torch.cat([code_ids_L_C.flatten(), torch.tensor([end_id])])

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the scores (B, V), with minus infinity for every token that must not follow input_ids (B, T)."""
        levels = self.trie.levels
        # The trie stays in main memory. Only the last few tokens move there, and the indices of allowed tokens back.
        window_B_W = input_ids[:, -(levels + 1) :].cpu()
        since_begin_B_W = torch.arange(window_B_W.shape[1] - 1, -1, -1)
        # The number of tokens after the last begin token, or levels + 1 if no ID is open.
        depth_B = torch.where(window_B_W == self.begin_id, since_begin_B_W, levels + 1).amin(dim=1)
        allowed = torch.full_like(scores, -torch.inf)
        # The trie advances one level at a time, so rows at the same depth go together.
        for depth in sorted(set(depth_B.tolist())):
            rows = (depth_B == depth).nonzero()[:, 0]
            if depth > levels:
                outside = rows.to(scores.device)
                allowed[outside] = scores[outside]
                allowed[outside[:, None], self._outside_ids.to(scores.device)] = -torch.inf
                continue
            nodes = self._walk(window_B_W[rows, window_B_W.shape[1] - depth :])
            if depth == levels:
                # The ID is complete, so only the end token may follow.
                tokens = torch.full_like(rows, self.end_id)
            else:
                of, codes = self.trie.children(depth, nodes)
                rows, tokens = rows[of], self.code_ids_L_C[depth][codes]
            # Indexing the flat scores is twice as fast as indexing rows and columns.
            places = (rows * scores.shape[1] + tokens).to(scores.device)
            allowed.view(-1)[places] = scores.reshape(-1)[places]
        return allowed

    def _walk(self, prefix_B_D: Tensor) -> Tensor:
        """Return the trie nodes (B,) that prefixes of D code tokens lead to."""
        # Node 0 of level 0 is the root.
        nodes_B = torch.zeros(len(prefix_B_D), dtype=torch.int64)
        last = self._code_of_L_V.shape[1] - 1
        for level in range(prefix_B_D.shape[1]):
            tokens_B = prefix_B_D[:, level]
            # Tokens beyond the table are clamped for the gather and then become -1, which step() rejects.
            codes_B = torch.where(tokens_B <= last, self._code_of_L_V[level][tokens_B.clamp(max=last)], -1)
            nodes_B = self.trie.step(level, nodes_B, codes_B)
        return nodes_B
