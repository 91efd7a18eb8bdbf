"""What every experiment pod needs, whatever its stage: its task, the storage, `/metrics` and `/progress`, a clean end."""
