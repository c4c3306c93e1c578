"""The supervisor: which specialist answers a conversation. Imports nothing else of this project.

Serving needs the modules here; `training` fits and measures what they serve, and is imported by commands only.
"""
