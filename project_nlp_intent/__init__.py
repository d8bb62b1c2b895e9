"""Intents from short texts, Korean and English: `python -m project_nlp_intent.train --help`."""
