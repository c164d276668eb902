"""How much of a tensor of [tokens, vocabulary] is computed at a time."""

LOGIT_CHUNK = 64 * 2**20
"""Bytes of one float32 array of a chunk of logits, at most; about four of them live at a time."""
