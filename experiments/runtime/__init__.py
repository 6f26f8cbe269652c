"""What surrounds a training: processes, checkpoints, locks, signals, what it shows and what guards it."""
