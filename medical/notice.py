"""What every result says of itself."""

from __future__ import annotations

RESEARCH_USE = "Research use, not a medical device"
