"""Tokenizers, chat templates, sampling and text generation."""
