"""Packed sets: samples decoded once, read at memory speed."""
