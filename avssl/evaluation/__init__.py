"""Embed once, then probe, retrieve, cluster, draw and report; everything here takes plain arrays and paths."""
