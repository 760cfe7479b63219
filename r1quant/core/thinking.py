"""The marks that R1 and its kin write around their reasoning."""

OPENING, CLOSING = "<think>", "</think>"
