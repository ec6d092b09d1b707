"""How good a classifier is: accuracy with its interval, precision, recall and F1 of each class, the confusion matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class Scores:
    """Counts of true class (rows) by predicted class (columns), and what follows from them.

    A class that is neither there nor predicted has an F1 of 0 and is left out of the mean, as scikit-learn's
    `f1_score(average="macro")` does over the labels that occur.
    """

    confusion_LL: NDArray[np.int64]

    @staticmethod
    def of(truth: ArrayLike, predicted: ArrayLike, labels: int) -> Scores:
        """Count.

        Args:
            truth, predicted: numbers of classes, one each a text.
        """
        pairs = np.asarray(truth, np.int64) * labels + np.asarray(predicted, np.int64)
        return Scores(np.bincount(pairs, minlength=labels * labels).reshape(labels, labels))

    @property
    def texts(self) -> int:
        return int(self.confusion_LL.sum())

    @property
    def accuracy(self) -> float:
        """The share that is right."""
        return float(self.confusion_LL.trace() / max(1, self.texts))

    @property
    def majority(self) -> float:
        """The accuracy of always saying the commonest class."""
        return float(self.confusion_LL.sum(1).max() / max(1, self.texts))

    @property
    def precision_L(self) -> NDArray[np.float64]:
        return _ratio(self.confusion_LL.diagonal(), self.confusion_LL.sum(0))

    @property
    def recall_L(self) -> NDArray[np.float64]:
        return _ratio(self.confusion_LL.diagonal(), self.confusion_LL.sum(1))

    @property
    def f1_L(self) -> NDArray[np.float64]:
        """2 right / (true + predicted)."""
        return _ratio(2 * self.confusion_LL.diagonal(), self.confusion_LL.sum(0) + self.confusion_LL.sum(1))

    @property
    def macro_f1(self) -> float:
        """The mean of the classes' F1."""
        occurs = (self.confusion_LL.sum(0) + self.confusion_LL.sum(1)) > 0
        return float(self.f1_L[occurs].mean()) if occurs.any() else 0.0

    def interval(self, z: float = 1.96) -> tuple[float, float]:
        """The accuracy's 95 % interval by Wilson's score, which holds near 1 too (Wilson 1927)."""
        n, p = max(1, self.texts), self.accuracy
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return middle - half, middle + half

    def plain(self, labels: Sequence[str]) -> dict[str, Any]:
        """As the content of scores.json."""
        low, high = self.interval()
        each = zip(labels, self.precision_L, self.recall_L, self.f1_L, self.confusion_LL.sum(1), strict=True)
        return {
            "texts": self.texts,
            "accuracy": round(self.accuracy, 6),
            "accuracy_95": [round(low, 6), round(high, 6)],
            "macro_f1": round(self.macro_f1, 6),
            "majority": round(self.majority, 6),
            "classes": {
                label: {
                    "precision": round(float(precision), 6),
                    "recall": round(float(recall), 6),
                    "f1": round(float(f1), 6),
                    "texts": int(texts),
                }
                for label, precision, recall, f1, texts in each
            },
            "labels": list(labels),
            "confusion": self.confusion_LL.tolist(),
        }


def _ratio(above: NDArray[np.int64], below: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.divide(above, below, out=np.zeros(len(above)), where=below > 0)
