"""A trie of the valid semantic IDs in flat arrays, for decoding that cannot leave it.

In sorted IDs the children of a node are adjacent. One array of offsets and one array of codes per level therefore hold
the whole trie (a CSR matrix per level), and a step of all beams is one search and one scatter, without a loop over
tokens or beams. ReRe (arXiv 2510.12211) trains with constrained decoding over such a trie. This module knows no model.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, slots=True)
class SidTrie:
    """A trie of IDs with L levels of `codebook_size` codes. Level 0 is the root, and the nodes of level L are the IDs.

    starts[l]: int64, shape (nodes of level l + 1,). The children of node n of level l are the nodes starts[l][n] to
    starts[l][n + 1] - 1 of level l + 1. codes[l]: int64, the code that leads into each node of level l + 1. edges[l]:
    int64, ascending, parent * codebook_size + code for the same nodes.
    """

    codebook_size: int
    starts: tuple[Tensor, ...]
    codes: tuple[Tensor, ...]
    edges: tuple[Tensor, ...]

    @classmethod
    def build(cls, codes_N_L: NDArray[np.integer], codebook_size: int) -> "SidTrie":
        """Build the trie of N IDs of L codes. Duplicate IDs count once.

        Raises ValueError if there are no IDs, or if a code is outside 0 to codebook_size - 1.
        """
        if codes_N_L.ndim != 2 or codes_N_L.size == 0:
            raise ValueError(f"codes_N_L has shape {codes_N_L.shape}; it must be (IDs, levels) with at least one ID")
        if codes_N_L.min() < 0 or codes_N_L.max() >= codebook_size:
            raise ValueError(
                f"the codes range from {codes_N_L.min()} to {codes_N_L.max()}; they must be from 0 to "
                f"{codebook_size - 1}"
            )
        # The last key of lexsort is the primary one, so the levels are passed in reverse.
        order_N = np.lexsort(codes_N_L.T[::-1])
        sorted_N_L = codes_N_L[order_N].astype(np.int64)
        starts, codes, edges = [], [], []
        parent_N = np.zeros(len(sorted_N_L), np.int64)
        for level in range(sorted_N_L.shape[1]):
            # One number per (parent, code). The rows are sorted, so these ascend and equal edges are adjacent.
            edge_N = parent_N * codebook_size + sorted_N_L[:, level]
            is_new_N = np.r_[True, edge_N[1:] != edge_N[:-1]]
            edge = edge_N[is_new_N]
            # Every node lies on the path to some ID and has a child, so bincount leaves no node out.
            children = np.bincount(edge // codebook_size)
            starts.append(torch.from_numpy(np.r_[0, np.cumsum(children)]))
            codes.append(torch.from_numpy(edge % codebook_size))
            edges.append(torch.from_numpy(edge))
            # The number of the new node that each row has reached.
            parent_N = np.cumsum(is_new_N) - 1
        return cls(codebook_size, tuple(starts), tuple(codes), tuple(edges))

    @property
    def levels(self) -> int:
        """L, the number of codes per ID."""
        return len(self.codes)

    def children(self, level: int, nodes_B: Tensor) -> tuple[Tensor, Tensor]:
        """Return the codes after B nodes of a level, as two flat arrays (row in the batch, code), row by row."""
        first_B = self.starts[level][nodes_B]
        count_B = self.starts[level][nodes_B + 1] - first_B
        rows = torch.repeat_interleave(torch.arange(len(nodes_B)), count_B)
        before_B = torch.cumsum(count_B, 0) - count_B
        # Position minus before_B counts the children within a row; adding first_B gives their place in the level.
        return rows, self.codes[level][torch.arange(len(rows)) + (first_B - before_B)[rows]]

    def step(self, level: int, nodes_B: Tensor, codes_B: Tensor) -> Tensor:
        """Return the nodes of the next level that the codes lead to. Raises ValueError if a code leads nowhere."""
        edge_B = nodes_B * self.codebook_size + codes_B
        edges = self.edges[level]
        # searchsorted returns where an unknown edge would be inserted, perhaps past the end. Hence the clamp and the
        # comparison.
        next_B = torch.searchsorted(edges, edge_B).clamp_(max=len(edges) - 1)
        # A code outside the codebook can form the edge of another parent, so its range is checked too.
        unknown_B = (edges[next_B] != edge_B) | (codes_B < 0) | (codes_B >= self.codebook_size)
        if unknown_B.any():
            row = int(unknown_B.nonzero()[0, 0])
            raise ValueError(f"no semantic ID has code {int(codes_B[row])} at level {level + 1} after this prefix")
        return next_B
