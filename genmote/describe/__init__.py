"""Signals into language: questions and answers about signals, and the model that learns from them."""
