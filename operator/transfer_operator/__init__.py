"""Watches, decides, applies: Kopf at the edge, pure functions inside."""
