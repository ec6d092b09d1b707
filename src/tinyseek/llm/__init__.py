"""The chat model that applications see: an engine of ours, or any OpenAI-compatible server, behind one face."""
