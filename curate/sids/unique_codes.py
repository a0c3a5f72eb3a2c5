"""Codes that nobody shares: the random last levels, and a place for items whose prefix is full.

The fitted levels say what an item is; the last M levels only tell items of one prefix apart, so they are drawn from the
combinations that the prefix has not used (the GR2 paper's random last level). The k-th item of a prefix takes the k-th
place of a permutation that seed and prefix alone decide: no item needs to know the others, a million items are a few
array operations, and who comes later goes on where the last one stopped.

An item whose prefix has no combination left takes the nearest prefix that has one, the deepest level changed first.
Items that come after training go the same way, past every ID that is taken.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from curate.sids.quantizers import squared_distances
from store.errors import InputError

# 2^30 places would hold any catalogue; the bound keeps stride times place below 2^63.
_MOST_PLACES = 1 << 30


def draw_last_codes(
    prefixes_N_F: NDArray[np.int64], places_N: NDArray[np.int64], codebook_size: int, levels: int, seed: int
) -> NDArray[np.int64]:
    """The last `levels` codes (N, levels) of items that stand at places_N, from 0, of their prefixes.

    Different places below codebook_size ** levels of one prefix give different codes.
    """
    size = codebook_size**levels
    bits_N = np.full(len(prefixes_N_F), seed, np.uint64)
    for level in range(prefixes_N_F.shape[1]):
        bits_N = _scramble(bits_N ^ prefixes_N_F[:, level].astype(np.uint64))
    offset_N = (bits_N % np.uint64(size)).astype(np.int64)
    stride_N = (_scramble(bits_N) % np.uint64(min(size, _MOST_PLACES))).astype(np.int64)
    while (shared_N := np.gcd(stride_N, codebook_size) != 1).any():
        stride_N[shared_N] += 1
    value_N = (offset_N + stride_N * places_N) % size
    powers_M = codebook_size ** np.arange(levels - 1, -1, -1, dtype=np.int64)
    last_N_M: NDArray[np.int64] = value_N[:, None] // powers_M % codebook_size
    return last_N_M


def complete_codes(
    codes_N_F: NDArray[np.int64],
    latents_N_d: NDArray[np.float32],
    codebooks: Sequence[NDArray[np.float32]],
    *,
    codebook_size: int,
    random_levels: int,
    seed: int,
) -> tuple[NDArray[np.uint16], int]:
    """IDs (N, F + random_levels) for items in their order, and how many took another prefix since theirs was full.

    Without random levels the codes are the IDs, shared or not. Raises InputError where there are more items than IDs.
    """
    if random_levels == 0:
        return codes_N_F.astype(np.uint16), 0
    places_N = _places(codes_N_F)
    settled_N = places_N < codebook_size**random_levels
    last_N_M = draw_last_codes(codes_N_F, places_N, codebook_size, random_levels, seed)
    ids_N_L = np.concatenate([codes_N_F, last_N_M], axis=1).astype(np.uint16)
    if not settled_N.all():
        book = Placement(
            ids_N_L[settled_N], codebooks, codebook_size=codebook_size, random_levels=random_levels, seed=seed
        )
        ids_N_L[~settled_N] = [book.place(latent_d) for latent_d in latents_N_d[~settled_N]]
    return ids_N_L, int((~settled_N).sum())


class Placement:
    """Gives latents one by one the nearest ID that is not taken.

    taken: IDs (T, L) that stand, in use or not. With random levels an ID is a prefix and whatever it has left; without,
    it is itself the nearest.
    """

    def __init__(
        self,
        taken: Iterable[Sequence[int]] | NDArray[np.uint16],
        codebooks: Sequence[NDArray[np.float32]],
        *,
        codebook_size: int,
        random_levels: int,
        seed: int,
    ) -> None:
        self._codebooks = codebooks
        self._size = codebook_size
        self._random_levels = random_levels
        self._seed = seed
        self._taken = {tuple(map(int, codes)) for codes in taken}
        fitted = len(codebooks)
        self._under = Counter(codes[:depth] for codes in self._taken for depth in range(fitted + 1))
        self._room = [codebook_size ** (fitted + random_levels - depth) for depth in range(fitted + 1)]

    def place(self, latent_d: NDArray[np.float32]) -> tuple[int, ...]:
        """Take an ID. Raises InputError where none is left."""
        if self._under[()] >= self._room[0]:
            raise InputError(
                f"all {self._room[0]:,} semantic IDs are taken; use more `levels` or a larger `codebook_size`"
            )
        prefix: tuple[int, ...] = ()
        residual_d = latent_d
        for depth, codebook_C_d in enumerate(self._codebooks):
            # What has room at a depth has a child with room: the walk never turns back.
            distances_C = squared_distances(residual_d[None], codebook_C_d)[0]
            near = [int(code) for code in np.argsort(distances_C, kind="stable")]
            code = next(
                code
                for code in (*near, *range(len(codebook_C_d), self._size))
                if self._under[*prefix, code] < self._room[depth + 1]
            )
            prefix = (*prefix, code)
            if code < len(codebook_C_d):
                residual_d = residual_d - codebook_C_d[code]
        codes = self._last(prefix)
        self._taken.add(codes)
        self._under.update(codes[:depth] for depth in range(len(self._codebooks) + 1))
        return codes

    def _last(self, prefix: tuple[int, ...]) -> tuple[int, ...]:
        """The prefix with its next unused combination; IDs that have gone leave gaps, so look until one is free."""
        if self._random_levels == 0:
            return prefix
        place = self._under[prefix]
        prefix_1_F = np.array([prefix], np.int64)
        while True:
            last = draw_last_codes(prefix_1_F, np.array([place]), self._size, self._random_levels, self._seed)
            codes = (*prefix, *last[0].tolist())
            if codes not in self._taken:
                return codes
            place = (place + 1) % self._room[-1]


def _places(codes_N_F: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many earlier rows have the same codes."""
    order_N = np.lexsort(codes_N_F.T[::-1])
    sorted_N_F = codes_N_F[order_N]
    is_first_N = np.r_[True, (sorted_N_F[1:] != sorted_N_F[:-1]).any(axis=1)]
    index_N = np.arange(len(codes_N_F))
    places_N = np.empty(len(codes_N_F), np.int64)
    places_N[order_N] = index_N - np.maximum.accumulate(np.where(is_first_N, index_N, 0))
    return places_N


def _scramble(bits_N: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of splitmix64 (Steele, Lea and Flood 2014): every bit depends on every bit."""
    bits_N = bits_N + np.uint64(0x9E3779B97F4A7C15)
    bits_N = (bits_N ^ (bits_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits_N = (bits_N ^ (bits_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits_N ^ (bits_N >> np.uint64(31))
