"""GGUF, the file format of llama.cpp and Ollama: read into a Hugging Face folder, and written from one.

container  the file: header, metadata, tensor table      quants         blocks of quantised numbers, both ways
names      their names and shapes, and ours              hyperparameters  their keys, and our ModelConfig
vocabulary tokens, merges, template                      splits         how text is cut before merging, by llama.cpp's names
convert    a whole file to a folder, and back
"""
