"""Answers over HTTP, and the page to try them on."""
