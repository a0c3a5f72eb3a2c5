"""The cost of building the trie of semantic IDs and of a constrained decoding step, beside nested dictionaries.

    python bench/sid_trie.py

There are a million IDs of 4 x 256 codes, 256 beams, and logits over 4,096 tokens. Public repositories of generative
recommenders use nested dictionaries, with one look-up per beam and token. Exit status 1 if a bar is missed.
"""

import sys
import time

import numpy as np
import torch
from measure import Bars

from train.ranking.constrained_decoding import SidLogitsProcessor
from train.ranking.sid_trie import SidTrie

IDS, LEVELS, CODES, BEAMS, VOCABULARY = 1_000_000, 4, 256, 256, 4_096
BEGIN, END = 1, 2
CODE_IDS = torch.arange(3, 3 + LEVELS * CODES).reshape(LEVELS, CODES)


def nested(codes_N_L: np.ndarray) -> dict:
    """Build a trie of dictionaries from each token to the tokens that may follow."""
    root: dict = {}
    tokens_N_L = CODE_IDS[torch.arange(LEVELS), torch.from_numpy(codes_N_L.astype(np.int64))].tolist()
    for tokens in tokens_N_L:
        node = root
        for token in tokens:
            node = node.setdefault(token, {})
    return root


def nested_step(root: dict, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """Take one step: walk each beam's prefix, then allow the tokens that may follow."""
    allowed = torch.full_like(scores, -torch.inf)
    for row, text in enumerate(input_ids.tolist()):
        node = root
        for token in text[len(text) - text[::-1].index(BEGIN) :]:
            node = node[token]
        following = list(node)
        allowed[row, following] = scores[row, following]
    return allowed


def main() -> None:
    """Build both tries, take steps in both, and compare."""
    torch.set_num_threads(2)
    bars = Bars()
    rng = np.random.default_rng(0)
    codes_N_L = rng.integers(0, CODES, (IDS, LEVELS)).astype(np.uint16)
    started = time.perf_counter()
    trie = SidTrie.build(codes_N_L, CODES)
    bars.at_most("building 1,000,000 IDs, seconds", time.perf_counter() - started, 10)
    started = time.perf_counter()
    root = nested(codes_N_L)
    print(f"       nested dictionaries: {time.perf_counter() - started:.1f} s")
    process = SidLogitsProcessor(trie, BEGIN, END, CODE_IDS)
    scores = torch.randn(BEAMS, VOCABULARY)
    picked = torch.from_numpy(codes_N_L[rng.integers(0, IDS, BEAMS)].astype(np.int64))
    for depth in range(LEVELS):
        prefix = CODE_IDS[torch.arange(depth), picked[:, :depth]]
        text = torch.cat([torch.full((BEAMS, 20), 5), torch.full((BEAMS, 1), BEGIN), prefix], dim=1)
        assert torch.equal(process(text, scores), nested_step(root, text, scores))
        ours, theirs = (
            min(elapsed(step, text, scores) for _ in range(30)) * 1000
            for step in (process, lambda ids, values: nested_step(root, ids, values))
        )
        bars.at_most(f"a step at level {depth + 1} of 256 beams, ms", ours, 1.0)
        print(f"       nested dictionaries: {theirs:.2f} ms, {theirs / ours:.0f} times as long")
    sys.exit(not bars.met)


def elapsed(step, text: torch.Tensor, scores: torch.Tensor) -> float:
    """Return the seconds of one step."""
    started = time.perf_counter()
    step(text, scores)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
