"""What the router's choices follow: mutual information with labels, held against chance.

Choices are a list with one array (T,) of expert indices for each clip, labels the same shape: a phoneme at each frame, or one
speaker for a whole clip.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .errors import UsageError


def mutual_information(a: np.ndarray, b: np.ndarray) -> float:
    """Bits that two sequences of labels (T,) say about each other: the plug-in estimate, never negative."""
    _, rows = np.unique(a, return_inverse=True)
    _, columns = np.unique(b, return_inverse=True)
    joint = np.zeros((rows.max() + 1, columns.max() + 1))
    np.add.at(joint, (rows, columns), 1.0)
    joint /= joint.sum()
    independent = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
    there = joint > 0
    return max(0.0, float((joint[there] * np.log2(joint[there] / independent[there])).sum()))


def entropy(labels: np.ndarray) -> float:
    """Bits: what a sequence says about itself."""
    return mutual_information(labels, labels)


def against_chance(
    choices: Sequence[np.ndarray], labels: Sequence[np.ndarray], permutations: int = 100, seed: int = 0
) -> dict[str, Any]:
    """``bits`` of mutual information, and ``chance``: its mean where choices and labels have nothing to do with each other.

    Neighbouring frames are alike, so frames are never shuffled: labels that change within clips are turned around within
    each clip by a random offset; labels that are one a clip change places between clips. ``share`` is what is above
    chance of the labels' entropy, ``p`` the share of permutations (with the true order) that reach ``bits``.
    Raises UsageError for clips that do not match.
    """
    if [len(c) for c in choices] != [len(label) for label in labels] or not len(choices):
        raise UsageError("every clip needs one label for each of its frames")
    rng = np.random.default_rng(seed)
    flat, told = np.concatenate(choices), np.concatenate(labels)
    whole_clips = all((label == label[0]).all() for label in labels if len(label))
    bits, by_chance = mutual_information(flat, told), []
    for _ in range(permutations):
        if whole_clips:
            order = rng.permutation(len(labels))
            other = [np.repeat(labels[j][:1], len(c)) for j, c in zip(order, choices, strict=True)]
        else:
            other = [np.roll(label, rng.integers(len(label))) if len(label) else label for label in labels]
        by_chance.append(mutual_information(flat, np.concatenate(other)))
    total = entropy(told)
    reached = sum(value >= bits - 1e-12 for value in by_chance)
    return {
        "bits": bits,
        "chance": float(np.mean(by_chance)),
        "entropy": total,
        "share": (bits - float(np.mean(by_chance))) / total if total else 0.0,
        "p": (reached + 1) / (permutations + 1),
    }
