"""The weights of students in a store, for tests that compare them."""

import safetensors.torch
import torch

from store import Store
from train.runs import student_folder

Weights = dict[str, torch.Tensor]


def weights(store: Store, name: str) -> Weights:
    """The weights of a student."""
    return safetensors.torch.load_file(student_folder(store, name) / "model.safetensors")


def same(left: Weights, right: Weights) -> bool:
    """Whether both have the same names and the same values, to the bit."""
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)
