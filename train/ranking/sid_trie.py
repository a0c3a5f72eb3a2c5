"""The valid semantic IDs as a trie in flat arrays, and decoding that cannot leave it.

Sorted IDs make the children of a node neighbours, so one array of offsets and one of codes per level are the whole trie
(a CSR matrix per level): a step for all beams at once is a search and a scatter, without a loop over tokens or beams.
Constrained decoding over such a trie is what ReRe (arXiv 2510.12211) trains with. It knows no model.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, slots=True)
class SidTrie:
    """IDs of L levels over `codebook_size` codes. Nodes of level 0 are the root alone, of level L the IDs.

    starts[l]: int64 of shape (nodes of level l + 1,); the children of node n are nodes starts[l][n] up to but without
    starts[l][n + 1] of level l + 1. codes[l]: int64, the code that leads into each node of level l + 1. edges[l]:
    int64, ascending, parent * codebook_size + code of the same nodes.
    """

    codebook_size: int
    starts: tuple[Tensor, ...]
    codes: tuple[Tensor, ...]
    edges: tuple[Tensor, ...]

    @classmethod
    def build(cls, codes_N_L: NDArray[np.integer], codebook_size: int) -> "SidTrie":
        """The trie of N IDs; an ID that is there twice counts once.

        Raises ValueError on no ID, or a code outside 0 to codebook_size - 1.
        """
        if codes_N_L.ndim != 2 or codes_N_L.size == 0:
            raise ValueError(f"the codes have shape {codes_N_L.shape}; (IDs, levels) with at least one ID is wanted")
        if codes_N_L.min() < 0 or codes_N_L.max() >= codebook_size:
            raise ValueError(
                f"codes go from {codes_N_L.min()} to {codes_N_L.max()}; 0 to {codebook_size - 1} is wanted"
            )
        order_N = np.lexsort(codes_N_L.T[::-1])
        sorted_N_L = codes_N_L[order_N].astype(np.int64)
        starts, codes, edges = [], [], []
        parent_N = np.zeros(len(sorted_N_L), np.int64)
        for level in range(sorted_N_L.shape[1]):
            edge_N = parent_N * codebook_size + sorted_N_L[:, level]
            is_new_N = np.r_[True, edge_N[1:] != edge_N[:-1]]
            edge = edge_N[is_new_N]
            children = np.bincount(edge // codebook_size)
            starts.append(torch.from_numpy(np.r_[0, np.cumsum(children)]))
            codes.append(torch.from_numpy(edge % codebook_size))
            edges.append(torch.from_numpy(edge))
            parent_N = np.cumsum(is_new_N) - 1
        return cls(codebook_size, tuple(starts), tuple(codes), tuple(edges))

    @property
    def levels(self) -> int:
        """L, codes per ID."""
        return len(self.codes)

    def children(self, level: int, nodes_B: Tensor) -> tuple[Tensor, Tensor]:
        """All ways on from B nodes of a level, as pairs (row in the batch, code), row by row."""
        first_B = self.starts[level][nodes_B]
        count_B = self.starts[level][nodes_B + 1] - first_B
        rows = torch.repeat_interleave(torch.arange(len(nodes_B)), count_B)
        before_B = torch.cumsum(count_B, 0) - count_B
        return rows, self.codes[level][torch.arange(len(rows)) + (first_B - before_B)[rows]]

    def step(self, level: int, nodes_B: Tensor, codes_B: Tensor) -> Tensor:
        """The nodes of the next level that codes lead to. Raises ValueError on a way that is none."""
        edge_B = nodes_B * self.codebook_size + codes_B
        edges = self.edges[level]
        found_B = torch.searchsorted(edges, edge_B).clamp_(max=len(edges) - 1)
        unknown_B = (edges[found_B] != edge_B) | (codes_B < 0) | (codes_B >= self.codebook_size)
        if unknown_B.any():
            row = int(unknown_B.nonzero()[0, 0])
            raise ValueError(f"no semantic ID has code {int(codes_B[row])} at level {level + 1} after this prefix")
        return found_B
