"""The chat page: conversations with a model, and a look inside it."""
