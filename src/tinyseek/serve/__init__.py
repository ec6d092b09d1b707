"""HTTP faces of a model: OpenAI's and Ollama's."""
