"""The tokens of semantic IDs in a language model: in its tokenizer, its embedding and its head.

This module owns which tokens are added to a Hugging Face tokenizer and causal model, which rows they get and how these
rows are initialized. The trainers train them. The tokens are those of OneRec-Think, which the GR2 paper (arXiv
2602.07774) adopts. The paper does not say how new rows are initialized, so that is our choice.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import AddedToken
from torch import Tensor

from prompts.semantic_ids import sid_tokens
from store.errors import InputError

THINKING = ("<think>", "</think>")
# GPUs multiply matrices with other row counts at a fraction of the speed.
ROWS_MULTIPLE = 64
# Standard deviation of the noise in new rows, relative to that of the old rows: enough to tell new tokens apart, and
# too little to make one of them likely.
NOISE = 0.1


@dataclass(frozen=True, slots=True, eq=False)
class Vocabulary:
    """The token ids of semantic IDs in a tokenizer, which are also their rows in a model.

    begin_id, end_id: the tokens around an ID. code_ids_L_C: int64, the token of each of the C codes of each of the L
    levels. new_rows: ascending, all tokens that no pretraining has seen: the tokens above, and the thinking markers
    unless the tokenizer had them already.
    """

    begin_id: int
    end_id: int
    code_ids_L_C: Tensor
    new_rows: tuple[int, ...]


def add_tokens(tokenizer: Any, levels: int, codebook_size: int) -> Vocabulary:
    """Add the tokens of semantic IDs and the thinking markers to a tokenizer. Existing tokens keep their ids.

    Raises InputError if the tokenizer cannot encode and decode the tokens, like `find_vocabulary`.
    """
    tokens = [*sid_tokens(levels, codebook_size), *THINKING]
    # special=False, because decoding drops special tokens. normalized=False, because a normalizer that changes a text,
    # for example to lower case, would keep the tokens from being recognised in it.
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in tokens])
    return find_vocabulary(tokenizer, levels, codebook_size)


def missing_token(tokenizer: Any, levels: int, codebook_size: int) -> str | None:
    """The first token of semantic IDs that a tokenizer lacks, or None if it has them all."""
    ids = tokenizer.get_vocab()
    return next((token for token in sid_tokens(levels, codebook_size) if token not in ids), None)


def find_vocabulary(tokenizer: Any, levels: int, codebook_size: int) -> Vocabulary:
    """Find the tokens of semantic IDs in a tokenizer that has them.

    Raises InputError with the name of the first missing token, or if the tokenizer does not encode each as one token
    and decode them without spaces between.
    """
    ids = tokenizer.get_vocab()
    tokens = sid_tokens(levels, codebook_size)
    missing = missing_token(tokenizer, levels, codebook_size)
    if missing is not None:
        raise InputError(
            f"the model's tokenizer has no token {missing}, which semantic IDs of {levels} levels with {codebook_size} "
            "codes need; add the tokens with gr2 train midtrain, or create a new student with gr2 train init"
        )
    sid_ids = [ids[token] for token in tokens]
    text = "".join(tokens)
    # verbose=False, because the text of all tokens is longer than a prompt, and transformers would warn about that.
    encoded = tokenizer.encode(text, add_special_tokens=False, verbose=False)
    if encoded != sid_ids or tokenizer.decode(sid_ids, skip_special_tokens=True) != text:
        raise InputError(
            f"the model's tokenizer ({type(tokenizer).__name__}) does not encode and decode semantic IDs without loss; "
            "choose a model whose tokenizer does, such as any with byte-level BPE"
        )
    begin_id, end_id, *code_ids = sid_ids
    # New tokens get higher ids than existing ones, so a thinking marker with a lower id came with the model.
    thinking = [ids[mark] for mark in THINKING if ids.get(mark, -1) > begin_id]
    return Vocabulary(
        begin_id, end_id, torch.tensor(code_ids).reshape(levels, codebook_size), tuple(sorted(sid_ids + thinking))
    )


@torch.no_grad()
def add_vocabulary(
    model: Any,
    tokenizer: Any,
    levels: int,
    codebook_size: int,
    *,
    codebooks: Sequence[NDArray[np.float32]] = (),
    seed: int = 0,
) -> Vocabulary:
    """Add the tokens of semantic IDs to a causal model and its tokenizer. Rows of existing tokens do not change.

    codebooks: the quantizer's codebooks, one array (C, d) per fitted level. The row of a code is then its vector in a
    random orthogonal projection, with the same mean distance from the mean of the old rows as the old rows have. All
    other new rows are the mean of the old rows plus a little noise. Embedding and head are treated alike, tied or not.

    Raises InputError if the tokenizer cannot encode and decode the tokens, like `find_vocabulary`.
    """
    old_ids = set(tokenizer.get_vocab().values())
    vocabulary = add_tokens(tokenizer, levels, codebook_size)
    rows = model.get_input_embeddings().num_embeddings
    # Models are often padded beyond their tokenizer, so new tokens may fit into existing rows.
    if vocabulary.new_rows[-1] >= rows:
        model.resize_token_embeddings(
            vocabulary.new_rows[-1] + 1, pad_to_multiple_of=ROWS_MULTIPLE, mean_resizing=False
        )
    added = {row for row in vocabulary.new_rows if row not in old_ids}
    # _R: new rows, both of added tokens and of padding. A token that the tokenizer had before keeps its trained row.
    fresh_R = torch.tensor(sorted(added.union(range(rows, model.get_input_embeddings().num_embeddings))))
    if len(fresh_R):
        random = torch.Generator().manual_seed(seed)
        embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
        # Tied weights are one tensor, which must not be initialized twice.
        for weight_V_D in (embedding,) if head is embedding else (embedding, head):
            _init_rows(weight_V_D, fresh_R, vocabulary.code_ids_L_C, codebooks, random)
    return vocabulary


def _init_rows(
    weight_V_D: Tensor,
    fresh_R: Tensor,
    code_ids_L_C: Tensor,
    codebooks: Sequence[NDArray[np.float32]],
    random: torch.Generator,
) -> None:
    """Initialize the rows `fresh_R` in place. All rows below the first of them count as old."""
    # _V: vocabulary, _O: old rows, _D: width of the model, _d: width of the codebooks.
    old_O_D = weight_V_D[: int(fresh_R[0])]
    mean_D = old_O_D.mean(dim=0, dtype=torch.float32).cpu()
    deviation_D = old_O_D.std(dim=0).float().cpu()
    noise_R_D = NOISE * deviation_D * torch.randn(len(fresh_R), len(mean_D), generator=random)
    weight_V_D[fresh_R] = (mean_D + noise_R_D).to(weight_V_D)
    # strict=False, because a level with random codes has no codebook and keeps the noise.
    for code_ids_C, codebook_C_d in zip(code_ids_L_C, codebooks, strict=False):
        # The norm of the deviation is the root mean square distance of old rows from their mean.
        rows_C_D = mean_D + deviation_D.norm() * _project(torch.from_numpy(codebook_C_d), len(mean_D), random)
        # A small catalogue may have led to a codebook with fewer codes than tokens.
        ids_C = code_ids_C[: len(rows_C_D)]
        is_fresh_C = torch.isin(ids_C, fresh_R)
        weight_V_D[ids_C[is_fresh_C]] = rows_C_D[is_fresh_C].to(weight_V_D)


def _project(codebook_C_d: Tensor, dimensions: int, random: torch.Generator) -> Tensor:
    """Return codebook vectors in a random orthogonal projection to (C, D), with mean 0 and mean squared length 1."""
    # An orthogonal basis preserves angles and distances between codes, as long as D is at least d.
    basis_d_D = torch.empty(codebook_C_d.shape[1], dimensions)
    torch.nn.init.orthogonal_(basis_d_D, generator=random)
    vectors_C_D = (codebook_C_d.float() - codebook_C_d.float().mean(dim=0)) @ basis_d_D
    return vectors_C_D / vectors_C_D.square().sum(dim=1).mean().sqrt().clamp_min(1e-12)
