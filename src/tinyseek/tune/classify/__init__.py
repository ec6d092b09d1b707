"""Telling what class a text is of: a head trained on labelled texts, or a chat model that is asked."""
