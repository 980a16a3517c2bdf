"""What people look at: previews, overlays, reports, tables of volumes."""
