"""Settings of every test."""

from hypothesis import settings

# A shared machine may be slow at any moment: an example is judged by what it finds, not by how long it takes.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
