"""Lip-sync: a face and a voice in, the same face speaking that voice out."""
