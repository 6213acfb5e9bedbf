"""Gradient-boosted trees as plain arrays: conversion from scikit-learn, and their evaluation with numpy."""

from typing import NamedTuple

import numpy as np

BLOCK = 256  # rows that are evaluated at a time, which bounds the memory


class Trees(NamedTuple):
    """Binary classifier of T trees of at most N nodes: leaves have themselves as children.

    Args:
        feature: Column that a node compares, (T, N).
        threshold: Values up to this one go left, (T, N).
        left: Left child, (T, N).
        right: Right child, (T, N).
        value: Contribution of a leaf to the log-odds, (T, N).
        baseline: Log-odds before the first tree, (1,).
    """

    feature: np.ndarray
    threshold: np.ndarray
    left: np.ndarray
    right: np.ndarray
    value: np.ndarray
    baseline: np.ndarray

    @classmethod
    def from_sklearn(cls, model) -> "Trees":
        """Convert a fitted HistGradientBoostingClassifier of two classes without categorical or missing values."""
        all_nodes = [predictors[0].nodes for predictors in model._predictors]
        shape = len(all_nodes), max(map(len, all_nodes))
        feature, left, right = (np.zeros(shape, np.int16) for _ in range(3))
        threshold, value = np.zeros(shape), np.zeros(shape)
        for i, nodes in enumerate(all_nodes):
            size, numbers, leaf = len(nodes), np.arange(len(nodes)), nodes["is_leaf"].astype(bool)
            feature[i, :size] = np.where(leaf, 0, nodes["feature_idx"])
            threshold[i, :size] = np.where(leaf, 0, nodes["num_threshold"])
            left[i, :size] = np.where(leaf, numbers, nodes["left"])
            right[i, :size] = np.where(leaf, numbers, nodes["right"])
            value[i, :size] = np.where(leaf, nodes["value"], 0)
        return cls(feature, threshold, left, right, value, np.asarray(model._baseline_prediction, float).reshape(1))

    def log_odds(self, rows: np.ndarray) -> np.ndarray:
        """Return the log-odds of (R, F) rows of features."""
        trees, size = self.feature.shape
        roots = np.arange(trees) * size  # nodes are numbered over all trees
        feature, threshold, value = self.feature.ravel().astype(np.int64), self.threshold.ravel(), self.value.ravel()
        left, right = ((children + roots[:, None]).ravel() for children in (self.left, self.right))
        result = np.zeros(len(rows))
        for start in range(0, len(rows), BLOCK):
            block = rows[start : start + BLOCK]
            offsets = np.arange(len(block))[:, None] * rows.shape[1]
            node, previous = np.broadcast_to(roots, (len(block), trees)), None
            while previous is None or (node != previous).any():
                goes_left = block.take(offsets + feature.take(node)) <= threshold.take(node)
                node, previous = np.where(goes_left, left.take(node), right.take(node)), node
            result[start : start + BLOCK] = value.take(node).sum(axis=1) + self.baseline[0]
        return result

    def probability(self, rows: np.ndarray) -> np.ndarray:
        """Return the probability of the second class for (R, F) rows of features."""
        return 1 / (1 + np.exp(-self.log_odds(rows)))
