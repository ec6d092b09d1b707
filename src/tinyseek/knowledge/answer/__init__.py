"""Passages to an answer that cites them."""
