"""Answers of a trained model, their scores and what led to them."""
