"""Translated pairs for any language: engines, sentences and their places, answer spans, files."""
