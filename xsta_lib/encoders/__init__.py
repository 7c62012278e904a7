"""Pretrained encoders and their tokenizers, by name or from a file."""
