"""Evaluations, a file for each kind: its metrics, its picture, and the evaluation that reports them."""
