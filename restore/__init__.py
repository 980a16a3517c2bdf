"""Pictures: super-resolution and restoration with published networks.

    import restore
    network = restore.load_model("hat", scale=4)        # or the path of any published checkpoint
    output = network(batch)                             # (B, 3, H, W) in [0, 1] to (B, 3, 4 H, 4 W)

Importing the package imports no torch; the functions do when they are called.
"""

from __future__ import annotations

from restore.loading import load_model

__all__ = ["load_model"]
