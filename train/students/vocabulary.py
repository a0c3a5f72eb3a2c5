"""The tokens of semantic IDs in a language model: in its tokenizer, its embedding and its head.

Owns which tokens are added to a Hugging Face tokenizer and causal model, where their rows stand and what they begin as;
how they are trained is the trainers' affair. The tokens are OneRec-Think's, which the GR2 paper (arXiv 2602.07774)
takes over; what new rows begin as is not stated there and is ours.
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
# GPUs multiply matrices of other heights at a fraction of the speed.
ROWS_MULTIPLE = 64
# Deviation of new rows in those of the old ones: enough to tell them apart, too little to make one likely.
NOISE = 0.1


@dataclass(frozen=True, slots=True, eq=False)
class Vocabulary:
    """Where the tokens of semantic IDs stand in a tokenizer, and so in a model.

    begin_id, end_id: around an ID. code_ids_L_C: int64, the token of each code of each level. new_rows: ascending, all
    of these and, where the tokenizer had none of its own, the marks of thinking: what no pretraining has seen.
    """

    begin_id: int
    end_id: int
    code_ids_L_C: Tensor
    new_rows: tuple[int, ...]


def add_tokens(tokenizer: Any, levels: int, codebook_size: int) -> Vocabulary:
    """Give a tokenizer the tokens of semantic IDs and the marks of thinking; those that it has stay as they are.

    Raises InputError where it cannot read and write them, as `find_vocabulary` says.
    """
    tokens = [*sid_tokens(levels, codebook_size), *THINKING]
    # Decoding drops special tokens, and a normalizer would keep others from being found.
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in tokens])
    return find_vocabulary(tokenizer, levels, codebook_size)


def find_vocabulary(tokenizer: Any, levels: int, codebook_size: int) -> Vocabulary:
    """The tokens of semantic IDs in a tokenizer that has them.

    Raises InputError that names the first token that it lacks, or where it does not read each as one token and write
    them back without blanks.
    """
    ids = tokenizer.get_vocab()
    tokens = sid_tokens(levels, codebook_size)
    missing = next((token for token in tokens if token not in ids), None)
    if missing is not None:
        raise InputError(
            f"the model's tokenizer has no token {missing}, which semantic IDs of {levels} levels with {codebook_size} "
            "codes need; gr2 train midtrain gives them to any model, gr2 train init makes one that has them"
        )
    sid_ids = [ids[token] for token in tokens]
    text = "".join(tokens)
    # A long text is no prompt here: nothing is to be said about the model's length.
    read = tokenizer.encode(text, add_special_tokens=False, verbose=False)
    if read != sid_ids or tokenizer.decode(sid_ids, skip_special_tokens=True) != text:
        raise InputError(
            f"the model's tokenizer ({type(tokenizer).__name__}) does not read semantic IDs token by token and write "
            "them back as they were; choose a model whose tokenizer does, such as any with byte-level BPE"
        )
    begin_id, end_id, *code_ids = sid_ids
    # New tokens get higher ids than all before, so marks of thinking below belong to the model.
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
    """Give a causal model and its tokenizer the tokens of semantic IDs; rows of tokens that are there already stay.

    codebooks: of the quantizer, one array (C, d) for each fitted level; a code's row then is its vector in a random
    orthogonal projection, as far from the mean of the old rows as those are. Without one, and for every other new row:
    the mean of the old rows and a little noise. Embedding and head get their rows alike, tied or not.

    Raises InputError where the tokenizer cannot read and write the tokens, as `find_vocabulary` says.
    """
    old_ids = set(tokenizer.get_vocab().values())
    vocabulary = add_tokens(tokenizer, levels, codebook_size)
    rows = model.get_input_embeddings().num_embeddings
    # The rows of a model may end before those of its tokenizer, or long after them.
    if vocabulary.new_rows[-1] >= rows:
        model.resize_token_embeddings(
            vocabulary.new_rows[-1] + 1, pad_to_multiple_of=ROWS_MULTIPLE, mean_resizing=False
        )
    added = {row for row in vocabulary.new_rows if row not in old_ids}
    fresh_R = torch.tensor(sorted(added.union(range(rows, model.get_input_embeddings().num_embeddings))))
    if len(fresh_R):
        random = torch.Generator().manual_seed(seed)
        embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
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
    """Write fresh rows; those below the first of them are the old ones."""
    old_O_D = weight_V_D[: int(fresh_R[0])]
    mean_D = old_O_D.mean(dim=0, dtype=torch.float32).cpu()
    deviation_D = old_O_D.std(dim=0).float().cpu()
    noise_R_D = NOISE * deviation_D * torch.randn(len(fresh_R), len(mean_D), generator=random)
    weight_V_D[fresh_R] = (mean_D + noise_R_D).to(weight_V_D)
    for code_ids_C, codebook_C_d in zip(code_ids_L_C, codebooks, strict=False):
        rows_C_D = mean_D + deviation_D.norm() * _project(torch.from_numpy(codebook_C_d), len(mean_D), random)
        # A codebook has fewer codes than tokens where there was less to tell apart.
        ids_C = code_ids_C[: len(rows_C_D)]
        is_fresh_C = torch.isin(ids_C, fresh_R)
        weight_V_D[ids_C[is_fresh_C]] = rows_C_D[is_fresh_C].to(weight_V_D)


def _project(codebook_C_d: Tensor, dimensions: int, random: torch.Generator) -> Tensor:
    """Vectors of a level in other dimensions (C, D), turned at random, with mean zero and mean squared length one."""
    basis_d_D = torch.empty(codebook_C_d.shape[1], dimensions)
    torch.nn.init.orthogonal_(basis_d_D, generator=random)
    vectors_C_D = (codebook_C_d.float() - codebook_C_d.float().mean(dim=0)) @ basis_d_D
    return vectors_C_D / vectors_C_D.square().sum(dim=1).mean().sqrt().clamp_min(1e-12)
