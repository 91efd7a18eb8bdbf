"""Vocabulary, data, elastic training: what runs in a training pod."""
