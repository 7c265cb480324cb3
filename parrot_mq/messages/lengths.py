"""How long the outputs of a function get: a histogram that forgets."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, Self

BUCKETS_PER_OCTAVE = 4
"""Bucket ``b`` holds lengths from ``2 ** (b / 4)`` to ``2 ** ((b + 1) / 4)`` tokens: within 9 % of its middle."""
MAX_BUCKET = 24 * BUCKETS_PER_OCTAVE - 1
"""Sixteen million tokens; what is longer counts here."""
DECAY = 0.05
"""What each new length takes from the weight of the older ones: the last twenty or so make the picture."""
HIGH = 0.9
"""Memory is set aside for this share of a function's outputs."""
MIN_WEIGHT = 0.01
"""Buckets that are forgotten to this are dropped."""
OLD_MEAN_COUNT = 10
"""Lengths that a mean without a histogram is taken for: what it weighed the newest by is a tenth."""


def bucket_of(num_tokens: int) -> int:
    """Return the bucket of a length."""
    return min(MAX_BUCKET, math.floor(BUCKETS_PER_OCTAVE * math.log2(max(1, num_tokens)) + 1e-9))


@dataclasses.dataclass(frozen=True)
class LengthHistogram:
    """Lengths in tokens in buckets that grow by a constant factor, older ones with less and less weight.

    ``count`` lengths were seen in all; ``mean`` is their mean, decayed as the ``weights`` of the buckets are. Bounded:
    at most ``MAX_BUCKET + 1`` buckets, whatever is seen.
    """

    count: int = 0
    mean: float = 0.0
    weights: tuple[tuple[int, float], ...] = ()
    """Bucket and weight, by bucket."""

    def observed(self, num_tokens: int) -> Self:
        """Return the histogram with one more length."""
        kept = {bucket: aged for bucket, weight in self.weights if (aged := weight * (1 - DECAY)) >= MIN_WEIGHT}
        before = sum(kept.values())
        bucket = bucket_of(num_tokens)
        kept[bucket] = kept.get(bucket, 0.0) + 1.0
        mean = (self.mean * before + num_tokens) / (before + 1.0)
        return dataclasses.replace(self, count=self.count + 1, mean=mean, weights=tuple(sorted(kept.items())))

    def quantile(self, share: float) -> float:
        """Return the length that ``share`` of the weight (0 to 1) does not exceed, interpolated inside its bucket; 0
        where nothing was seen.
        """
        wanted = share * sum(weight for _, weight in self.weights)
        length = 0.0
        for bucket, weight in self.weights:
            part = min(1.0, wanted / weight)
            length = 2.0 ** ((bucket + part) / BUCKETS_PER_OCTAVE)
            wanted -= weight
            if wanted <= 0:
                break
        return length

    @functools.cached_property
    def high(self) -> float:
        """A length that the share ``HIGH`` does not exceed: asked for with each request, so it is found once."""
        return self.quantile(HIGH)

    def to_data(self) -> dict[str, Any]:
        """Return it as what becomes a JSON object."""
        weights = {str(bucket): round(weight, 3) for bucket, weight in self.weights}
        return {"count": self.count, "mean": round(self.mean, 2), "weights": weights}

    @classmethod
    def from_data(cls, data: dict[str, Any] | float) -> Self:
        """Build it from ``to_data``, or from the mean that earlier schedulers kept in its place."""
        if isinstance(data, (int, float)):
            return cls(OLD_MEAN_COUNT, float(data), ((bucket_of(round(data)), float(OLD_MEAN_COUNT)),))
        weights = sorted((int(bucket), float(weight)) for bucket, weight in data["weights"].items())
        return cls(int(data["count"]), float(data["mean"]), tuple(weights))
