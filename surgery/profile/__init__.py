"""Profiling: a corpus is read by the parent while its router is watched."""
