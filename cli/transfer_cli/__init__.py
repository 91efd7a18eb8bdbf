"""`transfer`: the same experiment file on one machine."""
