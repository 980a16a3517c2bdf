"""Many inputs through one worker function: resume, failures, progress; in this process or on Ray."""
