"""Names of the token mixers, for helps that do without torch."""

from __future__ import annotations

MIXER_NAMES = ("window", "cross-shaped", "overlapping", "channel", "transposed", "large-kernel", "wavelet", "rwkv")
"""The keys of `hybrid.blocks.mixers.MIXERS`."""
