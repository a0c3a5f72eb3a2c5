"""Makes codes unique: draws the random last levels, and moves items of a full prefix to another prefix.

The fitted levels describe an item. The last M levels only distinguish the items of one prefix, so their codes are drawn
from the combinations that the prefix has not used (the random last level of the GR2 paper). The k-th item of a prefix
takes the k-th entry of a permutation that depends only on seed and prefix. Items therefore do not depend on each other,
a million items take a few array operations, and later items continue where the last one stopped.

An item whose prefix has no combination left takes the nearest prefix that has one, changing the deepest level first.
Items that are added after training are placed in the same way, and skip all IDs that are taken.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from curate.sids.quantizers import squared_distances
from store.errors import InputError

# No catalogue needs as many places. The bound keeps the product of stride and place below 2^63.
_MOST_PLACES = 1 << 30


def draw_last_codes(
    prefixes_N_F: NDArray[np.int64], places_N: NDArray[np.int64], codebook_size: int, levels: int, seed: int
) -> NDArray[np.int64]:
    """Draw the last `levels` codes, shape (N, levels), of items at the given places of their prefixes.

    places_N: counted from 0 within a prefix. Different places of a prefix give different codes, as long as they are
    below codebook_size ** levels.
    """
    size = codebook_size**levels
    bits_N = np.full(len(prefixes_N_F), seed, np.uint64)
    for level in range(prefixes_N_F.shape[1]):
        bits_N = _scramble(bits_N ^ prefixes_N_F[:, level].astype(np.uint64))
    offset_N = (bits_N % np.uint64(size)).astype(np.int64)
    stride_N = (_scramble(bits_N) % np.uint64(min(size, _MOST_PLACES))).astype(np.int64)
    # place -> offset + stride * place (mod size) is a permutation if stride and size have no common factor.
    while (shared_N := np.gcd(stride_N, codebook_size) != 1).any():
        stride_N[shared_N] += 1
    value_N = (offset_N + stride_N * places_N) % size
    # The digits of the value in base codebook_size are the codes.
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
    """Complete the fitted codes to IDs.

    Returns the IDs, shape (N, F + random_levels), and the number of items that took another prefix because theirs was
    full. Without random levels the fitted codes are the IDs, even if items share them.

    Raises InputError if there are more items than IDs.
    """
    if random_levels == 0:
        return codes_N_F.astype(np.uint16), 0
    places_N = _places(codes_N_F)
    settled_N = places_N < codebook_size**random_levels
    last_N_M = draw_last_codes(codes_N_F, places_N, codebook_size, random_levels, seed)
    ids_N_L = np.concatenate([codes_N_F, last_N_M], axis=1).astype(np.uint16)
    # All items that fit under their own prefix are placed at once. Only the rest goes one by one, since each takes an
    # ID.
    if not settled_N.all():
        placement = Placement(
            ids_N_L[settled_N], codebooks, codebook_size=codebook_size, random_levels=random_levels, seed=seed
        )
        ids_N_L[~settled_N] = [placement.place(latent_d) for latent_d in latents_N_d[~settled_N]]
    return ids_N_L, int((~settled_N).sum())


class Placement:
    """Assigns latents, one at a time, the nearest ID that is not taken.

    taken: IDs (T, L) that must not be assigned again. With random levels, the nearest prefix with a free combination is
    chosen; without, the nearest free ID.
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
        # Taken IDs under each prefix, and the capacity of a prefix of each depth.
        self._under = Counter(codes[:depth] for codes in self._taken for depth in range(fitted + 1))
        self._room = [codebook_size ** (fitted + random_levels - depth) for depth in range(fitted + 1)]

    def place(self, latent_d: NDArray[np.float32]) -> tuple[int, ...]:
        """Assign and return an ID for a latent (d,). Raises InputError if no ID is left."""
        if self._under[()] >= self._room[0]:
            raise InputError(
                f"all {self._room[0]:,} semantic IDs are taken; use more `levels` or a larger `codebook_size`"
            )
        prefix: tuple[int, ...] = ()
        residual_d = latent_d
        for depth, codebook_C_d in enumerate(self._codebooks):
            # A prefix with room has a child with room, so the walk never has to go back.
            distances_C = squared_distances(residual_d[None], codebook_C_d)[0]
            # Codes without a vector, which a small codebook leaves over, come after the nearest ones.
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
        """Return the prefix with its next unused combination of last codes."""
        if self._random_levels == 0:
            return prefix
        # This is only a first guess: items that moved here from full prefixes or were deleted leave gaps in the
        # numbering.
        place = self._under[prefix]
        prefix_1_F = np.array([prefix], np.int64)
        while True:
            last = draw_last_codes(prefix_1_F, np.array([place]), self._size, self._random_levels, self._seed)
            codes = (*prefix, *last[0].tolist())
            if codes not in self._taken:
                return codes
            place = (place + 1) % self._room[-1]


def _places(codes_N_F: NDArray[np.int64]) -> NDArray[np.int64]:
    """The number of earlier rows with the same codes, shape (N,)."""
    # lexsort is stable and sorts by its last key first. Within a run of equal rows, the place is the distance from the
    # first row of the run.
    order_N = np.lexsort(codes_N_F.T[::-1])
    sorted_N_F = codes_N_F[order_N]
    is_first_N = np.r_[True, (sorted_N_F[1:] != sorted_N_F[:-1]).any(axis=1)]
    index_N = np.arange(len(codes_N_F))
    places_N = np.empty(len(codes_N_F), np.int64)
    places_N[order_N] = index_N - np.maximum.accumulate(np.where(is_first_N, index_N, 0))
    return places_N


def _scramble(bits_N: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of splitmix64 (Steele, Lea and Flood 2014): every output bit depends on every input bit."""
    # Written out, because Python's hash() of integers does not mix bits and NumPy has no hash function.
    bits_N = bits_N + np.uint64(0x9E3779B97F4A7C15)
    bits_N = (bits_N ^ (bits_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits_N = (bits_N ^ (bits_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits_N ^ (bits_N >> np.uint64(31))
