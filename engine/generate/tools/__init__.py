"""Calls of tools: how families of models write them, one small file a family, and how they are read and held to."""
