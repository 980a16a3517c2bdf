"""From file to file: what a user names, the scans it holds, and the results beside each other on disk."""
