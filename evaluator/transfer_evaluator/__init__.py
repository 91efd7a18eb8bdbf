"""Scores, statistics, report: what runs in an evaluation pod."""
